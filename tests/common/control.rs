// SPDX-License-Identifier: BSD-3-Clause
//! Somebody who gives commands to a plugin that was started with `control=PATH`, and servers for that.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::clients::LIMIT;
use super::nbdkit::{Nbdkit, forward};
use super::process::eventually;
use super::relay::Relay;
use super::upstream::memory;

/// The socket's name in a test's directory.
pub const NAME: &str = "control.sock";

/// The parameter for it.
pub fn parameter(directory: &Path) -> String {
    format!("control={}", directory.join(NAME).display())
}

/// A connection to the socket.
pub struct Commander {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Commander {
    /// Connects to the socket in a directory, which nbdkit makes a moment after it listens.
    pub fn new(directory: &Path) -> Self {
        Self::at(&directory.join(NAME))
    }

    pub fn at(path: &Path) -> Self {
        let stream = eventually("the control socket is there", LIMIT, || {
            UnixStream::connect(path).ok()
        });
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        stream.set_write_timeout(Some(LIMIT)).expect("a timeout");
        Self {
            stream: BufReader::new(stream),
            path: path.to_owned(),
        }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("taken");
    }

    /// Sends nothing more.
    pub fn finish(&self) {
        let stream = self.stream.get_ref();
        stream.shutdown(Shutdown::Write).expect("still open");
    }

    /// The next line; `None` at the end.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        // With something unread a hang-up is a reset.
        let count = self.stream.read_line(&mut line).unwrap_or(0);
        (count > 0).then_some(line)
    }

    /// The next answer.
    pub fn answer(&mut self) -> Value {
        let line = self.line().expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// What comes of a command.
    pub fn ask(&mut self, command: &str) -> Value {
        self.send(format!("{command}\n").as_bytes());
        self.answer()
    }

    /// A command that must be done.
    pub fn does(&mut self, command: &str) -> Value {
        let answer = self.ask(command);
        assert_eq!(answer["ok"], true, "{command}: {answer}");
        answer
    }

    /// Why a command is not done.
    pub fn refuses(&mut self, command: &str) -> String {
        let answer = self.ask(command);
        assert_eq!(answer["ok"], false, "{command}: {answer}");
        answer["error"].as_str().expect("a reason").to_owned()
    }

    pub fn status(&mut self) -> Value {
        self.does("status")
    }

    /// A number in the status.
    pub fn number(&mut self, key: &str) -> u64 {
        self.status()[key].as_u64().expect("a number")
    }

    /// Waits until a number in the status is this one.
    pub fn await_number(&mut self, key: &str, wanted: u64) {
        let what = format!("{key} is {wanted}");
        eventually(&what, LIMIT, || (self.number(key) == wanted).then_some(()));
    }

    /// Waits for a state.
    pub fn await_state(&mut self, wanted: &str) {
        eventually(wanted, LIMIT, || {
            (self.status()["state"] == wanted).then_some(())
        });
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A server, a wire to it that is watched, and the plugin that takes commands.
pub struct Stand {
    pub front: Nbdkit,
    pub relay: Relay,
    pub server: Nbdkit,
    directory: TempDir,
}

impl Stand {
    pub fn new(extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let place = directory.path();
        let server = memory(place, "16M");
        let relay = Relay::unix(place, "relay.sock", server.socket());
        let control = parameter(place);
        let front = forward(
            place,
            relay.socket(),
            &[&[control.as_str()], extra].concat(),
        );
        Self {
            front,
            relay,
            server,
            directory,
        }
    }

    pub fn commander(&self) -> Commander {
        Commander::new(self.path())
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The server answers nothing.
    pub fn stop_server(&self) {
        self.server.stop();
    }

    pub fn continue_server(&self) {
        self.server.signal(libc::SIGCONT);
    }
}

/// All kinds of ways to the server.
pub const KINDS: [&[&str]; 8] = [
    &[],
    &["shared=true"],
    &["connections=4"],
    &["linger=forever"],
    &["reconnect=30"],
    &["reconnect=30", "replay=0"],
    &["reconnect=30", "connections=4"],
    &["reconnect=30", "shared=true"],
];
