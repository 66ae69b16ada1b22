//! The datagram socket: one task receives and hands over, the driver sends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::driver::{Event, now};

/// Buffers asked of the kernel; it gives what `net.core.rmem_max` and `wmem_max` allow.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Larger than any UDP datagram.
const RECEIVE_BYTES: usize = 65_536;

/// Binds the socket.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// Receives until the driver is gone. What it cannot take is dropped and counted, digests repair it.
pub(crate) async fn receive(
    socket: Arc<UdpSocket>,
    events: mpsc::Sender<Event>,
    lost: super::Lost,
) {
    let mut buffer = vec![0; RECEIVE_BYTES];
    loop {
        let Ok((bytes, from)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier send shows up here; the next receive waits for the next datagram.
            tokio::task::yield_now().await;
            continue;
        };
        let datagram = Bytes::copy_from_slice(&buffer[..bytes]);
        let event = Event::Datagram {
            from,
            datagram,
            at: now(),
        };
        match events.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => lost.count(),
            Err(TrySendError::Closed(_)) => return,
        }
    }
}
