//! quinn on tokio, with sockets that are woken by what arrives and by nothing else.
//!
//! quinn's own tokio sockets are registered with the system for reading and for writing at once. Each packet that its
//! receiver takes makes room in the sender's buffer, which the system then reports to the sender: a wake-up for nothing
//! after almost every packet that was sent. And after each packet that was received quinn asks for another, which costs
//! a system call to hear that there is none. With many small packets, as between nodes, that is a good part of what the
//! network costs at all.
//!
//! Here a socket is registered for reading only. A socket whose send buffer is full, which is rare, is registered a
//! second time, for writing, for as long as that lasts. And a receive that came back with less than it had room for has
//! emptied the socket, and is not followed by another until the system reports more.

use std::{
    future::Future,
    io,
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState},
};
use tokio::io::{Interest, unix::AsyncFd};

/// The runtime to give to a quinn endpoint. See the module's documentation.
#[derive(Debug)]
pub struct QuietRuntime;

impl Runtime for QuietRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(QuietSocket::new(socket)?))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[derive(Debug)]
struct QuietSocket {
    /// Registered for reading only.
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// Whether the last packet found no room in the send buffer.
    is_full: AtomicBool,
}

impl QuietSocket {
    fn new(socket: UdpSocket) -> io::Result<QuietSocket> {
        // Sets the socket up, and makes it non-blocking.
        let state = UdpSocketState::new((&socket).into())?;
        let socket = register(socket, Interest::READABLE)?;
        Ok(QuietSocket { socket, state, is_full: AtomicBool::new(false) })
    }
}

/// Registers a socket with tokio.
// Deprecated because some types may close or change their descriptor while it is registered. A socket of the standard
// library does neither, and nothing here takes it out.
#[allow(deprecated)]
fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncUdpSocket for QuietSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(RoomPoller { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.socket.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.is_full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            match self.state.recv(self.socket.get_ref().into(), buffers, metas) {
                Ok(received) => {
                    if received < buffers.len().min(BATCH_SIZE) {
                        // Nothing was left. What has come since is reported by itself, and is not cleared here.
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(received));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Tells one connection when its socket has room.
#[derive(Debug)]
struct RoomPoller {
    socket: Arc<QuietSocket>,
    /// The same socket, registered for writing while it has no room.
    waiting: Option<AsyncFd<UdpSocket>>,
}

impl UdpPoller for RoomPoller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() {
            if !self.socket.is_full.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            // The system knows registrations by descriptor, so that another one can have another interest.
            let other = self.socket.socket.get_ref().try_clone()?;
            self.waiting = Some(register(other, Interest::WRITABLE)?);
        }
        if let Some(waiting) = &self.waiting {
            ready!(waiting.poll_write_ready(context))?.retain_ready();
        }
        self.waiting = None;
        self.socket.is_full.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{Duration, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn socket() -> (Arc<QuietSocket>, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (Arc::new(QuietSocket::new(socket).unwrap()), address)
    }

    fn transmit(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None }
    }

    /// The sizes of the packets that one receive brings.
    async fn receive(socket: &QuietSocket) -> Vec<usize> {
        let mut bytes = vec![[0; 65_536]; BATCH_SIZE];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut buffers: Vec<_> = bytes.iter_mut().map(|bytes| io::IoSliceMut::new(bytes)).collect();
        let received = poll_fn(|context| socket.poll_recv(context, &mut buffers, &mut metas)).await.unwrap();
        metas[..received].iter().flat_map(|meta| vec![meta.stride; meta.len / meta.stride]).collect()
    }

    #[tokio::test]
    async fn every_packet_arrives_though_a_receive_that_was_not_filled_is_the_last() {
        let ((from, _), (to, address)) = (socket(), socket());
        for count in [1, 3, BATCH_SIZE, BATCH_SIZE + 1, 2 * BATCH_SIZE] {
            for _ in 0..count {
                from.try_send(&transmit(address, &[7; 100])).unwrap();
            }
            let mut found = 0;
            while found < count {
                let sizes = timeout(SECOND, receive(&to)).await.expect("what was sent arrives");
                assert!(sizes.iter().all(|size| *size == 100), "{sizes:?}");
                found += sizes.len();
            }
            assert_eq!(found, count);
            assert!(timeout(Duration::from_millis(20), receive(&to)).await.is_err(), "nothing is left");
        }
    }

    #[tokio::test]
    async fn a_receiver_that_waits_is_woken() {
        let ((from, _), (to, address)) = (socket(), socket());
        let receiver = tokio::spawn(async move { receive(&to).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        from.try_send(&transmit(address, b"hello")).unwrap();
        assert_eq!(timeout(SECOND, receiver).await.expect("woken").unwrap(), [5]);
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for_and_works_again() {
        let (socket, address) = socket();
        let mut poller = Arc::clone(&socket).create_io_poller();
        let mut is_writable =
            async || poll_fn(|context| poller.as_mut().poll_writable(context)).await.unwrap();
        is_writable().await;
        // A loopback socket is never full for long: it is only said to be.
        socket.is_full.store(true, Ordering::Relaxed);
        timeout(SECOND, is_writable()).await.expect("it has room");
        assert!(!socket.is_full.load(Ordering::Relaxed));
        socket.try_send(&transmit(address, b"again")).unwrap();
        assert_eq!(timeout(SECOND, receive(&socket)).await.expect("it arrives"), [5]);
    }
}
