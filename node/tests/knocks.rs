//! A client of another make, aioquic, is served or turned away as our own is: nothing depends on both sides being the same
//! library.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod running;
mod settings;

use std::{
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use client::{
    Access, Level, Role,
    certificates::{Authority, Request},
    wire::{
        ALPN_CLIENT, ALPN_PEER, ClientHello, ClientMessage, ControlReply, ControlRequest, FrameReader,
        MESSAGE_BYTES_MAX, PROTOCOL_VERSION, ServerMessage,
    },
};
use running::Running;
use serde_json::Value;

const DAY: Duration = Duration::from_secs(86_400);

/// The independent client: a script, in a virtual environment that is made once.
struct Knocker {
    python: PathBuf,
    script: PathBuf,
}

/// What a knock came to.
#[derive(Debug)]
struct Knock {
    answers: Vec<ServerMessage>,
    end: Option<String>,
}

impl Knocker {
    /// None, said aloud, if there is no Python or the packages cannot be had.
    fn new() -> Option<Knocker> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/independent");
        let requirements = directory.join("requirements.txt");
        let pins = blake3::hash(&std::fs::read(&requirements).unwrap()).to_hex();
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        let environment = cache.join(format!("quorate/knocks-{}", &pins[..12]));
        let (python, complete) = (environment.join("bin/python"), environment.join("complete"));
        let run = |program: &Path, arguments: &[&std::ffi::OsStr]| {
            Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
        };
        let is_there = complete.exists()
            || (run(Path::new("python3"), &["-m".as_ref(), "venv".as_ref(), environment.as_os_str()])
                && run(
                    &python,
                    &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]
                        .map(AsRef::as_ref)
                        .into_iter()
                        .chain([requirements.as_os_str()])
                        .collect::<Vec<_>>(),
                )
                && std::fs::write(&complete, "").is_ok());
        if !is_there {
            eprintln!("SKIPPED, NOTHING WAS TESTED: no Python with venv, or aioquic cannot be installed");
        }
        is_there.then(|| Knocker { python, script: directory.join("knock.py") })
    }

    fn knock(
        &self,
        running: &Running,
        alpn: &[u8],
        papers: Option<&(PathBuf, PathBuf)>,
        bytes: &[u8],
        frames: usize,
    ) -> Knock {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut command = Command::new(&self.python);
        command.arg(&self.script).arg(running.options.port(1).to_string());
        command.arg(running.options.directory.join("ca.pem")).arg(std::str::from_utf8(alpn).unwrap());
        match papers {
            Some((certificate, key)) => command.arg(certificate).arg(key),
            None => command.args(["-", "-"]),
        };
        let output = command.arg(hex).arg(frames.to_string()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let answer = said["answer"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&answer[at..at + 2], 16).unwrap();
        let answer: Vec<u8> = (0..answer.len()).step_by(2).map(byte).collect();
        let mut frames = FrameReader::new(MESSAGE_BYTES_MAX);
        frames.push(Bytes::from(answer));
        let mut answers = Vec::new();
        while let Some(body) = frames.next().unwrap() {
            answers.push(ServerMessage::decode(body).unwrap());
        }
        Knock { answers, end: said["end"]["reason"].as_str().map(str::to_owned) }
    }
}

fn encoded(messages: &[ClientMessage]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for message in messages {
        message.encode(&mut out);
    }
    out.to_vec()
}

#[tokio::test]
async fn a_client_of_another_make_is_served_or_turned_away_as_any_other() {
    let Some(knocker) = Knocker::new() else { return };
    let running = Running::threads(1);
    let directory = running.options.directory.clone();
    let authority = Authority::open(&directory).unwrap();
    let foreign = Authority::create(&directory.join("foreign")).unwrap();
    let now = SystemTime::now();
    let issue = |authority: &Authority, role: Role, at: SystemTime, stem: &str| {
        let request = Request { role, name: stem.to_owned(), hosts: Vec::new(), days: 1 };
        let files = authority.issue_at(&request, at).unwrap().write(&directory, stem).unwrap();
        (files.certificate, files.key)
    };
    let admin = || Role::client(Access::Admin);
    let good = issue(&authority, admin(), now, "good");
    let hello = ClientMessage::Hello(ClientHello { version: PROTOCOL_VERSION, features: 0 });
    let status = ClientMessage::Control { id: 7, request: ControlRequest::Status };
    let asks = encoded(&[hello.clone(), status]);

    let served = knocker.knock(&running, ALPN_CLIENT, Some(&good), &asks, 2);
    assert!(
        matches!(
            &served.answers[..],
            [
                ServerMessage::Welcome(_),
                ServerMessage::Control { id: 7, reply: Ok(ControlReply::Status(_)), .. }
            ]
        ),
        "{served:?}"
    );

    let turned_away = [
        ("no certificate", ALPN_CLIENT, None),
        ("a foreign authority's", ALPN_CLIENT, Some(issue(&foreign, admin(), now, "stranger"))),
        ("an expired one", ALPN_CLIENT, Some(issue(&authority, admin(), now - DAY * 3, "late"))),
        ("one for later", ALPN_CLIENT, Some(issue(&authority, admin(), now + DAY * 3, "early"))),
        ("a node's, as a client", ALPN_CLIENT, Some(issue(&authority, Role::Node, now, "climber"))),
        ("a client's, as a node", ALPN_PEER, Some(good.clone())),
        ("a protocol that nobody speaks", &b"h3"[..], Some(good.clone())),
    ];
    for (what, alpn, papers) in turned_away {
        let knock = knocker.knock(&running, alpn, papers.as_ref(), &asks, 0);
        eprintln!("{what}: {:?}", knock.end);
        assert!(knock.answers.is_empty() && knock.end.is_some(), "{what}: {knock:?}");
    }

    let mut hello_alone = encoded(&[hello]);
    let welcome = knocker.knock(&running, ALPN_CLIENT, Some(&good), &hello_alone, 1);
    assert!(matches!(&welcome.answers[..], [ServerMessage::Welcome(_)]), "{welcome:?}");
    hello_alone.extend_from_slice(&u32::MAX.to_be_bytes());
    for (what, bytes, answers) in [
        ("a length of four billion", u32::MAX.to_be_bytes().to_vec(), 0),
        ("the same after a hello", hello_alone, 1),
        ("noise", (0..2000_u32).map(|number| (number * 167 % 251) as u8).collect(), 0),
    ] {
        let knock = knocker.knock(&running, ALPN_CLIENT, Some(&good), &bytes, 0);
        eprintln!("{what}: {:?}", knock.end);
        // The end may overtake the welcome.
        assert!(knock.answers.len() <= answers && knock.end.is_some(), "{what}: {knock:?}");
    }

    // Datagrams that are no QUIC, and some that nearly are.
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    for number in 0..5000_u32 {
        let mut datagram: Vec<u8> =
            (0..number % 1400).map(|at| (at.wrapping_mul(number) >> 3) as u8).collect();
        if let Some(first) = datagram.first_mut().filter(|_| number % 2 == 0) {
            *first |= 0xc0;
        }
        // One that finds no room is as good as lost.
        _ = socket.send_to(&datagram, ("127.0.0.1", running.options.port(1)));
    }
    let served = knocker.knock(&running, ALPN_CLIENT, Some(&good), &asks, 2);
    assert_eq!(served.answers.len(), 2, "{served:?}");
    let client = running.client().await;
    client.default_keyspace().unwrap().put("alive", "yes").w(Level::All).send().await.unwrap();
    client.close().await;
}
