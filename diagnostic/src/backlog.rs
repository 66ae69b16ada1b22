//! The end of a listener: connections that the system has made for it are taken over, none is reset.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::debug;

/// How long a handshake may take that had begun when the listener was to be closed.
const HANDSHAKE: Duration = Duration::from_millis(20);

/// Closes a listener and returns the clients whose connection the system had made by then.
///
/// From the first moment on the system drops what would open a further connection, and handshakes under way come to their
/// end, so that nobody is reset. Whoever is dropped asks again after a second (RFC 6298) and is refused, or served by the
/// listener that follows. A handshake that takes the network longer than [`HANDSHAKE`] is reset.
pub(crate) async fn close(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let mut clients = Vec::new();
    #[cfg(target_os = "linux")]
    match openings::drop_all(&listener) {
        Ok(()) => {
            let late = async {
                while let Ok(client) = listener.accept().await {
                    clients.push(client);
                }
            };
            drop(timeout(HANDSHAKE, late).await);
        }
        Err(error) => debug!(%error, "openings not held back"),
    }
    if let Err(error) = take_waiting(listener, &mut clients) {
        debug!(%error, "clients that wait are lost");
    }
    clients
}

/// Accepts all that wait. The runtime accepts when it has been told of clients, which it may not have been yet: the system
/// itself is asked.
fn take_waiting(
    listener: TcpListener,
    clients: &mut Vec<(TcpStream, SocketAddr)>,
) -> io::Result<()> {
    let listener = listener.into_std()?;
    loop {
        match listener.accept() {
            Ok((stream, remote)) => {
                stream.set_nonblocking(true)?;
                clients.push((TcpStream::from_std(stream)?, remote));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // It has gone already.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What the system drops for a listener.
#[cfg(target_os = "linux")]
mod openings {
    use std::io;

    use socket2::{SockFilter, SockRef};
    use tokio::net::TcpListener;

    /// Operations of the packet filter, `linux/bpf_common.h`: load a byte, mask it, branch, return.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const BRANCH_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;

    /// Where the flags of a segment are, and those of them that tell an opening (RFC 9293, 3.1).
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;

    /// Drops segments that open a connection; those that complete one are still taken.
    pub(super) fn drop_all(listener: &TcpListener) -> io::Result<()> {
        SockRef::from(listener).attach_filter(&[
            SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
            SockFilter::new(AND, 0, 0, SYN | ACK),
            SockFilter::new(BRANCH_EQUAL, 0, 1, SYN),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ])
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn clients_that_nobody_has_accepted_are_taken_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        // The runtime is not asked in between, so it has not heard of them.
        let mut waiting: Vec<_> = (0..50)
            .map(|_| std::net::TcpStream::connect(addr).unwrap())
            .collect();
        let mut clients = Vec::new();
        take_waiting(listener, &mut clients).unwrap();
        assert_eq!(clients.len(), waiting.len());
        drop(clients);
        let mut client = TcpStream::from_std({
            let client = waiting.remove(0);
            client.set_nonblocking(true).unwrap();
            client
        })
        .unwrap();
        // Ended, not reset.
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(TcpStream::connect(addr).await.is_err());
    }

    #[tokio::test]
    async fn a_closed_listener_refuses_and_hands_its_clients_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut waiting = TcpStream::connect(addr).await.unwrap();
        let clients = close(listener).await;
        assert_eq!(clients.len(), 1);
        clients[0].0.try_write(b"x").unwrap();
        assert_eq!(waiting.read(&mut [0]).await.unwrap(), 1);
        assert!(TcpStream::connect(addr).await.is_err());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn openings_are_dropped_and_connections_go_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut early = TcpStream::connect(addr).await.unwrap();
        openings::drop_all(&listener).unwrap();
        let late = timeout(Duration::from_millis(200), TcpStream::connect(addr)).await;
        assert!(late.is_err(), "neither made nor refused");
        let (accepted, _) = listener.accept().await.unwrap();
        accepted.try_write(b"x").unwrap();
        assert_eq!(early.read(&mut [0]).await.unwrap(), 1);
    }
}
