//! `sock_diag`(7) gives the listening sockets alone: the kernel does not touch its table of connections for that.
//! Anybody may ask, for the network namespace of the asking thread.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use super::ListeningSocket;

/// The kernel puts no more into one datagram of a list (`netlink_recvmsg` in `net/netlink/af_netlink.c`).
const LARGEST_DATAGRAM: usize = 32 * 1024;

/// All of them. An error where the kernel can't be asked so (it lacks `inet_diag`).
pub(super) fn listening() -> io::Result<Vec<ListeningSocket>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let (mut all, mut datagram) = (Vec::new(), Vec::with_capacity(LARGEST_DATAGRAM));
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        ask(&socket, family, any)?;
        loop {
            datagram.clear();
            socket.recv(&mut datagram, 0)?;
            if !answer(&datagram, &mut all)? {
                break;
            }
        }
    }
    Ok(all)
}

fn ask(socket: &Socket, family: u8, any: SocketId) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id: any,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

/// Takes in what one datagram holds. Whether there is more to come.
fn answer(mut datagram: &[u8], all: &mut Vec<ListeningSocket>) -> io::Result<bool> {
    while !datagram.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(datagram).map_err(io::Error::other)?;
        // Messages begin at multiples of four bytes.
        let len = usize::try_from(message.header.length).map_or(datagram.len(), |len| len.next_multiple_of(4));
        datagram = datagram.get(len..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => all.push(found(&response.header)),
            NetlinkPayload::Done(done) if done.code == 0 => return Ok(false),
            NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(done.code.saturating_neg())),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Overrun(_) => return Err(io::ErrorKind::Interrupted.into()),
            _ => {}
        }
    }
    Ok(true)
}

fn found(header: &InetResponseHeader) -> ListeningSocket {
    let id = &header.socket_id;
    let addr = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
    ListeningSocket { addr, inode: header.inode.into() }
}
