//! A network of its own: each machine has a network namespace with a TUN device, and a switch in this process carries
//! packets between them, or does not. It delays, loses and repeats them, and cuts ways, each direction by itself.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    fs::File,
    io::{self, BufRead, BufReader},
    os::fd::AsFd,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{Dice, run};

/// No packet is larger.
const MTU: u16 = 1500;
/// How long a reader waits for a packet before it looks whether it is to end.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The address of the machine at a port of the switch, numbered from 0.
pub(crate) fn address(port: usize) -> String {
    format!("10.77.0.{}", port + 1)
}

/// A network namespace, which lasts as long as its holder: a process that ends when this one does.
pub(crate) struct Namespace {
    holder: Child,
    _keeps_it: ChildStdin,
}

impl Namespace {
    fn new() -> Result<Namespace, String> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let (keeps_it, said) = (holder.stdin.take().unwrap(), holder.stdout.take().unwrap());
        let mut line = String::new();
        let read = BufReader::new(said).read_line(&mut line);
        if read.is_err() || line != "made\n" {
            drop(holder.kill());
            let output = holder.wait_with_output().map_err(|error| error.to_string())?;
            return Err(format!("unshare: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(Namespace { holder, _keeps_it: keeps_it })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Moves this thread there.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let link = File::open(self.path())?;
        Ok(move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Makes the device of a port in it.
    fn device(&self, port: usize) -> Result<SyncDevice, String> {
        let make = || {
            self.enter()?;
            let device = DeviceBuilder::new().name("quorate0").build_sync()?;
            device.set_nonblocking(true)?;
            Ok(device)
        };
        let made: io::Result<SyncDevice> = thread::scope(|scope| scope.spawn(make).join().unwrap());
        let device = made.map_err(|error| format!("no TUN device: {error}"))?;
        let address = address(port);
        let script = format!(
            "ip address add {address}/24 dev quorate0 && ip link set quorate0 up mtu {MTU} && ip link set lo up"
        );
        run("nsenter", &[&format!("--net={}", self.path()), "sh", "-c", &script])?;
        Ok(device)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// How packets travel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    /// Ways that are cut: from which port to which.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// How long each packet takes, at least and at most.
    pub(crate) delay: (Duration, Duration),
    /// Of a thousand packets, how many are lost.
    pub(crate) lost_permille: u64,
    /// Of a thousand packets, how many arrive twice.
    pub(crate) repeated_permille: u64,
}

/// The switch, with a namespace at each port.
pub(crate) struct Switch {
    pub(crate) namespaces: Vec<Namespace>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A packet on its way: when it arrives, its number among those of its sender, where it goes, and what it says.
type Flying = (Instant, u64, usize, Vec<u8>);

struct Shared {
    ports: Vec<SyncDevice>,
    weather: Mutex<Weather>,
    /// Packets on their way, the next to arrive on top.
    flying: Mutex<BinaryHeap<Reverse<Flying>>>,
    is_more: Condvar,
    is_over: AtomicBool,
}

impl Switch {
    /// A switch with so many ports. Fails where the rights or the tools are lacking.
    pub(crate) fn new(ports: usize, seed: u64) -> Result<Switch, String> {
        let namespaces = (0..ports).map(|_| Namespace::new()).collect::<Result<Vec<_>, _>>()?;
        let devices = namespaces.iter().enumerate().map(|(port, namespace)| namespace.device(port));
        let shared = Arc::new(Shared {
            ports: devices.collect::<Result<Vec<_>, _>>()?,
            weather: Mutex::default(),
            flying: Mutex::default(),
            is_more: Condvar::new(),
            is_over: AtomicBool::new(false),
        });
        let reader = |port: usize| {
            let shared = Arc::clone(&shared);
            let dice = Dice(seed.wrapping_add(port as u64));
            thread::spawn(move || shared.read(port, dice))
        };
        let mut threads: Vec<_> = (0..ports).map(reader).collect();
        let deliverer = Arc::clone(&shared);
        threads.push(thread::spawn(move || deliverer.deliver()));
        Ok(Switch { namespaces, shared, threads })
    }

    /// The weather changes.
    pub(crate) fn set(&self, weather: Weather) {
        *self.shared.weather.lock().unwrap() = weather;
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.shared.is_more.notify_all();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

impl Shared {
    /// Takes packets from a port until it is over.
    fn read(&self, port: usize, mut dice: Dice) {
        let device = &self.ports[port];
        let mut buffer = [0; MTU as usize + 64];
        let mut order = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let mut waits = [PollFd::new(device, PollFlags::IN)];
            let _ = poll(&mut waits, Some(&LOOK_EVERY));
            while let Ok(length) = device.recv(&mut buffer) {
                let packet = &buffer[..length];
                // IPv4, and whom it is for.
                let Some(to) = packet.get(19).filter(|_| packet[0] >> 4 == 4) else { continue };
                let Some(to) = usize::from(*to).checked_sub(1).filter(|to| *to < self.ports.len()) else {
                    continue;
                };
                let weather = self.weather.lock().unwrap();
                if weather.cut.contains(&(port, to)) || dice.below(1000) < weather.lost_permille {
                    continue;
                }
                let copies = 1 + usize::from(dice.below(1000) < weather.repeated_permille);
                let (least, most) = weather.delay;
                drop(weather);
                if most.is_zero() {
                    // A full queue loses it, like any network.
                    (0..copies).for_each(|_| drop(self.ports[to].send(packet)));
                    continue;
                }
                for _ in 0..copies {
                    let spread = u64::try_from((most - least).as_micros()).unwrap();
                    let at = Instant::now() + least + Duration::from_micros(dice.below(spread + 1));
                    order += 1;
                    self.flying.lock().unwrap().push(Reverse((at, order, to, packet.to_vec())));
                    self.is_more.notify_one();
                }
            }
        }
    }

    /// Hands over what has been on its way for long enough.
    fn deliver(&self) {
        let mut flying = self.flying.lock().unwrap();
        while !self.is_over.load(Ordering::Relaxed) {
            let now = Instant::now();
            match flying.peek().map(|Reverse((at, ..))| *at) {
                Some(at) if at <= now => {
                    let Reverse((_, _, to, packet)) = flying.pop().unwrap();
                    drop(self.ports[to].send(&packet));
                }
                next => {
                    let wait = next.map_or(Duration::from_millis(100), |at| at - now);
                    let waited = self.is_more.wait_timeout(flying, wait);
                    flying = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}
