// SPDX-License-Identifier: BSD-3-Clause
//! `nbdkit-nbdctl`: gives commands to a plugin that was started with `control=PATH`, and shows what it
//! answers.
//!
//! The plugin answers programs with JSON and people with lines, so that nothing is parsed here but where
//! an answer ends.

#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const HELP: &str = "\
Gives commands to nbdkit's nbd plugin, where it was started with control=PATH.

Usage: nbdkit-nbdctl [--json] PATH COMMAND

Commands:
  status            what there is and what it is doing
  watch             the same once a second, until Ctrl-C or nbdkit's end
  drain [TIME]      hold requests, with all that came before answered and
                    flushed; no effect if that is not so within TIME (30 s)
  resume            let requests go on
  reconnect [TIME]  leave all connections for new ones (with reconnect=)
  set KEY=TIME      give a parameter another value, such as request-timeout=30
  log on|off        tell of each request, or not any more
  version           which plugin it is

Options:
  --json            the answer as a line of JSON
  --help, -h        this text
  --version, -V     the version of this program

Exit status: 0 if it was done, 1 if not, 2 for wrong usage of this program.
";

/// By what follows the version scripts/install.sh knows what is ours.
const VERSION: &str = concat!(
    "nbdkit-nbdctl ",
    env!("CARGO_PKG_VERSION"),
    " (nbd_client=rust/",
    env!("CARGO_PKG_VERSION"),
    ")\n"
);

/// How long to wait for an answer beside the time that the command may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the plugin tries where nothing is said.
const TRIES: Duration = Duration::from_secs(30);

/// Longest answer, bytes: a thousand connections and more.
const LONGEST: u64 = 16 << 20;

/// From one table to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// What was typed.
struct Arguments {
    json: bool,
    path: PathBuf,
    command: Vec<String>,
}

/// Why it ends without having done what it should.
enum Failure {
    /// It was typed wrong.
    Usage(String),
    /// It cannot be done.
    Failed(String),
    /// The plugin has said no, and that was shown.
    Refused,
    /// Nobody reads what is printed, or it cannot be written.
    Unread(io::Error),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Refused) => ExitCode::from(1),
        Err(Failure::Unread(error)) => {
            // Whoever has hung up wants to hear nothing.
            if error.kind() != ErrorKind::BrokenPipe {
                complain(format_args!(
                    "the answer cannot be written: {}",
                    describe(&error)
                ));
            }
            ExitCode::from(1)
        }
        Err(Failure::Failed(why)) => {
            complain(format_args!("{why}"));
            ExitCode::from(1)
        }
        Err(Failure::Usage(why)) => {
            complain(format_args!("{why}; see nbdkit-nbdctl --help"));
            ExitCode::from(2)
        }
    }
}

/// Nobody can be told that nobody can be told.
fn complain(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "nbdkit-nbdctl: {text}");
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(Failure::Unread)
}

fn run() -> Result<(), Failure> {
    let Some(arguments) = Arguments::parse()? else {
        return Ok(());
    };
    let words: Vec<&str> = arguments.command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["watch"] => watch(&arguments),
        ["watch", ..] => Err(Failure::Usage(
            "watch must be followed by nothing".to_owned(),
        )),
        _ => {
            let mut plugin = Plugin::connect(&arguments.path, patience(&words))?;
            let answer = plugin.ask(&words.join(" "), arguments.json)?;
            match answer.ok {
                true => print(&answer.text),
                false if arguments.json => {
                    print(&answer.text)?;
                    Err(Failure::Refused)
                }
                false => Err(Failure::Failed(answer.text.trim_end().to_owned())),
            }
        }
    }
}

impl Arguments {
    /// `None` if it was a question about this program, and answered.
    fn parse() -> Result<Option<Self>, Failure> {
        let mut json = false;
        let mut rest: Vec<OsString> = Vec::new();
        for argument in env::args_os().skip(1) {
            match argument.to_string_lossy().as_ref() {
                "--help" | "-h" => return print(HELP).map(|()| None),
                "--version" | "-V" => {
                    return print(VERSION).map(|()| None);
                }
                "--json" => json = true,
                option if option.starts_with('-') => {
                    let option = shown(option);
                    return Err(Failure::Usage(format!("unknown option '{option}'")));
                }
                _ => rest.push(argument),
            }
        }
        let mut rest = rest.into_iter();
        let Some(path) = rest.next() else {
            return Err(Failure::Usage("no PATH of a socket".to_owned()));
        };
        // A path may have any bytes; all words of commands are ours.
        let word = |word: OsString| {
            word.into_string().map_err(|word| {
                Failure::Usage(format!("{} is no UTF-8", shown(&word.to_string_lossy())))
            })
        };
        let command = rest.map(word).collect::<Result<Vec<_>, _>>()?;
        if command.is_empty() {
            return Err(Failure::Usage("no COMMAND".to_owned()));
        }
        if command.iter().any(|word| word.contains(['\n', '\r'])) {
            return Err(Failure::Usage("a command is one line".to_owned()));
        }
        Ok(Some(Self {
            json,
            path: path.into(),
            command,
        }))
    }
}

/// How long the answer to a command may take. What is no time the plugin will say at once.
fn patience(words: &[&str]) -> Duration {
    let tries = match words {
        ["drain" | "reconnect"] => TRIES,
        ["drain" | "reconnect", time] => {
            let (number, unit) = match time.strip_suffix("ms") {
                Some(number) => (number, 1e-3),
                None => (time.strip_suffix('s').unwrap_or(time), 1.0),
            };
            let seconds = number.parse::<f64>().map_or(0.0, |number| number * unit);
            Duration::try_from_secs_f64(seconds).unwrap_or_default()
        }
        _ => Duration::ZERO,
    };
    tries.saturating_add(PATIENCE)
}

/// The plugin at the other end of the socket.
struct Plugin {
    /// The socket's path, to be shown.
    path: String,
    stream: BufReader<UnixStream>,
}

struct Answer {
    ok: bool,
    text: String,
}

impl Plugin {
    fn connect(socket: &Path, patience: Duration) -> Result<Self, Failure> {
        let path = shown(&socket.to_string_lossy());
        let failed = |error: io::Error| {
            Failure::Failed(match error.kind() {
                ErrorKind::ConnectionRefused => {
                    format!("{path}: nobody listens there: nbdkit has ended, or it is no socket")
                }
                ErrorKind::NotFound => {
                    format!("{path}: there is no such socket: does nbdkit run with control={path}?")
                }
                ErrorKind::PermissionDenied => {
                    format!("{path}: permission denied: it is for nbdkit's own user alone")
                }
                _ => format!("{path}: {}", describe(&error)),
            })
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(patience)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Self {
            path,
            stream: BufReader::new(stream),
        })
    }

    /// Gives a command and waits for the answer.
    fn ask(&mut self, command: &str, json: bool) -> Result<Answer, Failure> {
        let line = match json {
            true => format!("{command}\n"),
            false => format!("text {command}\n"),
        };
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        let answer = sent.and_then(|()| self.receive(json));
        answer.map_err(|error| {
            Failure::Failed(match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    format!("{}: no answer in time", self.path)
                }
                ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                    format!("{}: nbdkit has ended the connection", self.path)
                }
                _ => format!("{}: {}", self.path, describe(&error)),
            })
        })
    }

    fn receive(&mut self, json: bool) -> io::Result<Answer> {
        let mut lines = self.stream.by_ref().take(LONGEST);
        let mut next = || {
            let mut line = String::new();
            lines.read_line(&mut line)?;
            match line.ends_with('\n') {
                true => Ok(line),
                false => Err(io::Error::from(ErrorKind::UnexpectedEof)),
            }
        };
        let first = next()?;
        // Whoever is refused before it has asked is told so in JSON.
        if json || first.starts_with('{') {
            return Ok(Answer {
                ok: first.starts_with("{\"ok\":true"),
                text: match json {
                    true => first,
                    false => shown(reason(first.trim_end())),
                },
            });
        }
        let mut text = String::new();
        loop {
            match next()?.as_str() {
                "\n" => break,
                line => {
                    text.push_str(&shown(line.trim_end_matches('\n')));
                    text.push('\n');
                }
            }
        }
        Ok(Answer {
            ok: first == "ok\n",
            text,
        })
    }
}

/// Shows the status again and again, until the plugin is gone.
fn watch(arguments: &Arguments) -> Result<(), Failure> {
    let mut plugin = Plugin::connect(&arguments.path, PATIENCE)?;
    let mut shown = false;
    let screen = io::stdout().is_terminal() && !arguments.json;
    loop {
        let answer = match plugin.ask("status", arguments.json) {
            Ok(answer) => answer,
            // Whoever watches has seen it end.
            Err(Failure::Failed(why)) if shown => {
                complain(format_args!("{why}"));
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
        if !answer.ok {
            return Err(Failure::Failed(answer.text.trim_end().to_owned()));
        }
        match screen {
            true => print(&drawn(&arguments.path, &answer.text, !shown))?,
            false if arguments.json => print(&answer.text)?,
            false => print(&format!("{}\n", answer.text))?,
        }
        shown = true;
        thread::sleep(PERIOD);
    }
}

/// What to send to a terminal so that it shows this and nothing else.
fn drawn(path: &Path, text: &str, first: bool) -> String {
    let (columns, rows) = match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 1 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => (80, 24),
    };
    let mut screen = String::new();
    if first {
        screen.push_str("\x1b[2J");
    }
    screen.push_str("\x1b[H");
    let title = format!("nbdkit-nbdctl {}", shown(&path.to_string_lossy()));
    let lines = std::iter::once(title.as_str()).chain(text.lines());
    // The last row stays free: a line's end there would move all others up.
    for line in lines.take(rows - 1) {
        // A line that is too long would take two rows.
        screen.extend(line.chars().take(columns));
        screen.push_str("\x1b[K\n");
    }
    screen.push_str("\x1b[J");
    screen
}

/// Why nothing was done, of an answer for programs that is sent before anybody has asked.
fn reason(answer: &str) -> &str {
    let text = answer.strip_prefix("{\"ok\":false,\"error\":\"");
    text.and_then(|text| text.strip_suffix("\"}"))
        .unwrap_or(answer)
}

/// Words of others, fit for a terminal: what would move its cursor or turn the text around is escaped.
/// Whoever listens at a path need not be the plugin.
fn shown(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut fit = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() || turns(c) {
            true => fit.extend(c.escape_default()),
            false => fit.push(c),
        }
    }
    fit
}

/// The text of an error, without the number that Rust appends.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_do_nothing_to_a_terminal() {
        assert_eq!(shown("a\x1b[2J\tb\u{202e}ü"), "a\\u{1b}[2J\\tb\\u{202e}ü");
    }

    #[test]
    fn a_command_may_take_its_time_and_a_bit() {
        let patience = |words: &[&str]| patience(words).as_millis();
        assert_eq!(patience(&["status"]), 10_000);
        assert_eq!(patience(&["drain"]), 40_000);
        assert_eq!(patience(&["drain", "500ms"]), 10_500);
        assert_eq!(patience(&["reconnect", "1.5s"]), 11_500);
        assert_eq!(patience(&["drain", "60"]), 70_000);
        assert_eq!(patience(&["drain", "soon"]), 10_000);
    }
}
