// SPDX-License-Identifier: BSD-3-Clause
//! A good NBD server, but for its cache: that is volatile, and lives and dies with the process.
//!
//! `handshake` is what comes before requests, `tls` puts TLS under it, `schedule` does requests in any order after
//! random delays, `cache` is the disk, and `world` what all threads share.

mod cache;
mod handshake;
mod schedule;
mod tls;
mod world;

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use crate::common::scripted::wire::{self, Fields, cmd, cmd_flag};
use crate::torture::block;
use crate::torture::setup::Setup;
use crate::torture::trace::event::{Request, What};
use world::{Connection, World};

/// The environment variable with the setup, or with the name of a file that has it behind [`IN_FILE`].
pub const VARIABLE: &str = "TORTURE_SETUP";
/// No setup begins like this.
pub const IN_FILE: &str = "@";
/// The test that is the server.
pub const TEST: &str = "torture::server::volatile_server";

/// No test: the test binary runs itself with this one to be a server.
#[test]
#[ignore = "the server of the other tests"]
fn volatile_server() {
    let Ok(text) = env::var(VARIABLE) else {
        return;
    };
    let text = match text.strip_prefix(IN_FILE) {
        Some(file) => fs::read_to_string(file).expect("the file with the setup"),
        None => text,
    };
    serve(Setup::from_text(&text));
}

/// The socket of somebody who starts servers with one (systemd, or the plugin by `command=`).
fn handed_over() -> Option<UnixListener> {
    env::var_os("LISTEN_FDS")?;
    // SAFETY: who sets LISTEN_FDS gives us descriptor 3, and nobody else here takes it.
    let socket = unsafe { OwnedFd::from_raw_fd(3) };
    Some(UnixListener::from(socket))
}

fn serve(setup: Setup) {
    let _ = fs::remove_file(setup.control());
    let accept: Box<dyn Fn() -> io::Result<UnixStream> + Send> = if setup.port != 0 {
        let listener = TcpListener::bind(("127.0.0.1", setup.port)).expect("listen on TCP");
        Box::new(move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            // A stream socket is one, whatever its family: nothing here asks for its address.
            Ok(UnixStream::from(OwnedFd::from(stream)))
        })
    } else {
        let _ = fs::remove_file(&setup.socket);
        let bind = || UnixListener::bind(&setup.socket).expect("listen");
        let listener = handed_over().unwrap_or_else(bind);
        Box::new(move || listener.accept().map(|(stream, _)| stream))
    };
    // The world begins before anyone can be told that it is there.
    let control = setup.control();
    let world = World::new(setup);
    let control = UnixListener::bind(control).expect("listen for orders");
    thread::spawn({
        let world = Arc::clone(&world);
        move || take_orders(&control, &world)
    });
    schedule::start(&world);
    loop {
        let stream = accept().expect("accept on our own socket");
        let world = Arc::clone(&world);
        thread::spawn(move || connection(stream, &world));
    }
}

/// One order a line, one line in answer.
fn take_orders(listener: &UnixListener, world: &Arc<World>) {
    loop {
        let (stream, _) = listener.accept().expect("accept on our own socket");
        let mut lines = BufReader::new(stream.try_clone().expect("duplicate descriptor"));
        let mut line = String::new();
        if lines.read_line(&mut line).is_err() {
            continue;
        }
        let answer = match line.trim_end() {
            "die" => world.die(),
            "epoch" => world.setup.epoch.to_string(),
            "peak" => world.peak().to_string(),
            "arrived" => world.arrived().to_string(),
            "connections" => world.connections().to_string(),
            // Somebody only wants to know whether we are there.
            _ => continue,
        };
        let _ = writeln!(&stream, "{answer}");
    }
}

fn connection(stream: UnixStream, world: &Arc<World>) {
    let number = world.accepted();
    if world.setup.mute {
        // Until the other side gives up; nothing that it says matters.
        let _ = io::copy(&mut &stream, &mut io::sink());
        return;
    }
    let Ok(Some(open)) = handshake::run(stream, &world.setup) else {
        return;
    };
    let (Ok(mut source), Ok(same)) = (open.stream.try_clone(), open.stream.try_clone()) else {
        return;
    };
    let connection = Connection::new(number, same, open.stream, open.structured);
    let connection = Arc::new(connection);
    world.open(&connection);
    // Whatever ends it, the requests that came are done first.
    let _ = take_requests(&mut source, &connection, world);
    connection.wait_idle();
    world.log(number, What::Close);
    let _ = source.shutdown(Shutdown::Both);
}

fn take_requests(
    source: &mut UnixStream,
    connection: &Arc<Connection>,
    world: &Arc<World>,
) -> io::Result<()> {
    loop {
        let mut header = [0; 28];
        source.read_exact(&mut header)?;
        let mut fields = Fields(&header);
        if fields.u32() != wire::REQUEST_MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (flags, kind, cookie) = (fields.u16(), fields.u16(), fields.u64());
        let (offset, length) = (fields.u64(), fields.u32());
        if kind == cmd::DISC {
            return Ok(());
        }
        let mut payload = Vec::new();
        if kind == cmd::WRITE {
            payload = vec![0; length as usize];
            source.read_exact(&mut payload)?;
        }
        let whole = offset % block::BLOCK as u64 == 0 && payload.len() % block::BLOCK == 0;
        let request = Request {
            cookie,
            kind,
            fua: flags & cmd_flag::FUA != 0,
            offset,
            length: u64::from(length),
            // Of blocks that are written in part nothing is said.
            contents: if whole {
                block::contents(&payload)
            } else {
                Vec::new()
            },
        };
        connection.more();
        world.arrive(connection, request, payload);
    }
}
