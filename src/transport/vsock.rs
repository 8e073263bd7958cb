// SPDX-License-Identifier: BSD-3-Clause
//! A virtio socket: between a virtual machine and its host, by context id and port.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::fd::connect_vsock;
use super::{Deadline, Error, Stream};

/// Connects to a port of a context.
pub fn open(cid: u32, port: u32, deadline: Deadline) -> Result<Stream, Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)
        .map_err(Error::Connect)?;
    connect_vsock(&fd, cid, port)?;
    Stream::new(fd).finish_connecting(deadline)
}
