//! Opening: connect, drive the handshake, both within their deadlines.

use std::sync::Arc;
use std::time::Duration;

use super::Options;
use super::error::{Error, OpenError, Server};
use crate::proto::consts::OptionType;
use crate::proto::export::Export;
use crate::proto::handshake::{self, Described, Goal, Handshake, Listed, Outcome, Step};
use crate::proto::name::ExportName;
use crate::proto::request::encode_option;
use crate::transport::tls::Settings;
use crate::transport::{Blocking, Deadline, Stream};

/// How long a server may take to close a connection that we left: several times what a far one needs.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// Connects, and enters transmission with `export`.
pub fn enter(
    server: &Server,
    options: &Options,
    export: &ExportName,
) -> Result<(Stream, Export), Error> {
    match reach(server, options, Goal::open(export))? {
        (stream, Outcome::Export(export)) => {
            describe(server, &export);
            Ok((stream, *export))
        }
        _ => Err(failed(server, OpenError::Goal)),
    }
}

/// Asks which exports there are.
pub fn list(server: &Server, options: &Options) -> Result<Vec<Listed>, Error> {
    match reach(server, options, Goal::list())? {
        (stream, Outcome::Listing(listing)) => {
            leave(&stream);
            Ok(listing)
        }
        _ => Err(failed(server, OpenError::Goal)),
    }
}

/// Asks about the default export.
pub fn describe_default(server: &Server, options: &Options) -> Result<Described, Error> {
    match reach(server, options, Goal::describe_default())? {
        (stream, Outcome::Described(described)) => {
            leave(&stream);
            Ok(described)
        }
        _ => Err(failed(server, OpenError::Goal)),
    }
}

/// Ends a connection that was left by `NBD_OPT_ABORT`. Nothing more is sent, and saying so at once
/// keeps a server that waits for us to close from waiting. Then it has a little time to close its
/// side, so that it can get rid of its reply and need not complain of us. The reply may be missing;
/// it is of no interest.
fn leave(stream: &Stream) {
    // Under TLS this says so there, too: servers complain of who leaves without a word.
    stream.finish_sending();
    let deadline = Deadline::after(LEAVE_TIMEOUT);
    let mut scrap = [0; 64];
    while !deadline.has_passed() {
        match stream.wait(true, false, None, deadline) {
            Ok(ready) if ready.readable => (),
            _ => break,
        }
        if stream.receive(&mut scrap, Blocking::No).is_err() {
            break;
        }
    }
}

fn failed(server: &Server, cause: OpenError) -> Error {
    Error::Open {
        server: server.clone(),
        cause: Arc::new(cause),
    }
}

/// Connects and shakes hands. Whatever the goal, the same TLS policy and deadlines apply.
fn reach(server: &Server, options: &Options, goal: Goal) -> Result<(Stream, Outcome), Error> {
    let connecting = Deadline::after_maybe(options.connect_timeout);
    let mut stream = options
        .target
        .connect(connecting)
        .map_err(|error| failed(server, OpenError::Connect(error)))?;
    log::debug!("{server}: connected");
    let deadline = Deadline::after_maybe(options.handshake_timeout);
    let goal = goal.with_tls(options.tls_policy);
    let outcome = shake_hands(&mut stream, goal, &options.tls, deadline)
        .map_err(|cause| failed(server, cause))?;
    Ok((stream, outcome))
}

/// Runs the handshake machine over a stream. One deadline covers all of it, so a server cannot
/// stretch it by saying little, but often.
fn shake_hands(
    stream: &mut Stream,
    goal: Goal,
    tls: &Settings,
    deadline: Deadline,
) -> Result<Outcome, OpenError> {
    let mut machine = Handshake::new(goal);
    let mut bytes = Vec::new();
    loop {
        let broken = |machine: &Handshake, error| match machine.may_be_refused() {
            true => OpenError::Unwelcome(error),
            false => OpenError::Broken {
                error,
                awaited: machine.awaited(),
            },
        };
        match machine.step() {
            Step::Send(bytes) => match stream.send_all(&bytes, deadline) {
                // What is said at the end is a courtesy, and the server may be gone.
                Err(error) if !machine.is_done() => return Err(broken(&machine, error)),
                _ => (),
            },
            Step::Receive(n) => {
                // The machine bounds n.
                bytes.resize(n, 0);
                stream
                    .receive_exact(&mut bytes, deadline)
                    .map_err(|error| broken(&machine, error))?;
                if let Err(error) = machine.received(&bytes) {
                    if matches!(error, handshake::Error::Refused(_)) {
                        // The connection is healthy, and servers like to be told.
                        let abort = encode_option(OptionType::ABORT, &[]);
                        if stream.send_all(&abort, deadline).is_ok() {
                            leave(stream);
                        }
                    }
                    return Err(OpenError::Handshake(error));
                }
            }
            Step::StartTls => {
                let proof = stream
                    .start_tls(tls, deadline)
                    .map_err(|error| broken(&machine, error))?;
                machine.tls_established(proof);
            }
            Step::Done => return machine.finish().ok_or(OpenError::Goal),
        }
    }
}

fn describe(server: &Server, export: &Export) {
    log::debug!(
        "{server}: export of {} bytes, {:?}, structured replies {}, base:allocation {}",
        export.size,
        export.flags,
        on(export.structured),
        on(export.base_allocation.is_some()),
    );
    if let Some(sizes) = export.block_sizes {
        log::debug!(
            "{server}: block sizes {}/{}/{}",
            sizes.minimum,
            sizes.preferred,
            sizes.maximum
        );
    }
}

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}
