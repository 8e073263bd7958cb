// SPDX-License-Identifier: BSD-3-Clause
//! The handshake of a good fixed newstyle server.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use crate::common::scripted::wire::{self, Fields, info, opt, rep};
use crate::torture::setup::Setup;

use super::tls;

/// A connection on which requests can come.
pub struct Opened {
    pub stream: UnixStream,
    pub structured: bool,
}

/// `None`: the client went away.
pub fn run(mut stream: UnixStream, setup: &Setup) -> io::Result<Option<Opened>> {
    let both = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;
    stream.write_all(&wire::greeting(both))?;
    let flags = u32::from_be_bytes(receive(&mut stream, 4)?.try_into().expect("four bytes"));
    let mut structured = false;
    let mut protected = false;
    let needs_tls = !setup.tls.as_os_str().is_empty();
    loop {
        let header = receive(&mut stream, 16)?;
        let mut fields = Fields(&header);
        if fields.u64() != wire::NEWSTYLE_MAGIC {
            return Err(ErrorKind::InvalidData.into());
        }
        let (option, length) = (fields.u32(), fields.u32() as usize);
        let data = receive(&mut stream, length)?;
        let mut reply = |kind: u32, payload: &[u8]| {
            stream.write_all(&wire::option_reply(option, kind, payload))
        };
        match option {
            opt::ABORT => {
                reply(rep::ACK, &[])?;
                return Ok(None);
            }
            opt::STARTTLS if needs_tls && !protected => {
                reply(rep::ACK, &[])?;
                stream = tls::accept(stream, &setup.tls)?;
                protected = true;
                structured = false;
            }
            _ if needs_tls && !protected && option != opt::EXPORT_NAME => {
                reply(rep::ERR_TLS_REQD, b"TLS is required here")?;
            }
            opt::STRUCTURED_REPLY => {
                structured = true;
                reply(rep::ACK, &[])?;
            }
            opt::LIST => {
                let name = setup.name.as_bytes();
                let length = u32::try_from(name.len()).expect("a short name");
                reply(rep::SERVER, &wire::join(&[&length.to_be_bytes(), name]))?;
                reply(rep::ACK, &[])?;
            }
            opt::INFO | opt::GO => {
                reply(rep::INFO, &wire::info_export(setup.size, setup.flags))?;
                if !setup.name.is_empty() {
                    reply(
                        rep::INFO,
                        &wire::info_payload(info::NAME, setup.name.as_bytes()),
                    )?;
                }
                if setup.blocks != (0, 0, 0) {
                    reply(rep::INFO, &wire::info_block_size(setup.blocks))?;
                }
                reply(rep::ACK, &[])?;
                if option == opt::GO {
                    return Ok(Some(Opened { stream, structured }));
                }
            }
            opt::EXPORT_NAME if !needs_tls || protected => {
                let mut answer = setup.size.to_be_bytes().to_vec();
                answer.extend(setup.flags.to_be_bytes());
                if flags & u32::from(wire::NO_ZEROES) == 0 {
                    answer.extend([0; 124]);
                }
                stream.write_all(&answer)?;
                return Ok(Some(Opened { stream, structured }));
            }
            // None of our contexts is known; that is no error.
            opt::SET_META_CONTEXT => reply(rep::ACK, &[])?,
            _ => {
                drop(data);
                reply(rep::ERR_UNSUP, &[])?;
            }
        }
    }
}

fn receive(stream: &mut UnixStream, count: usize) -> io::Result<Vec<u8>> {
    if count > 1 << 16 {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
