//! Opening: connect, drive the handshake, both within their deadlines.

use std::sync::Arc;
use std::time::Duration;

use super::Options;
use super::error::{Error, OpenError, Server};
use crate::proto::consts::OptionType;
use crate::proto::export::Export;
use crate::proto::handshake::{self, Described, Goal, Handshake, Listed, Outcome, Step, TlsPolicy};
use crate::proto::request::encode_option;
use crate::transport::tls::{Credentials, Prepared};
use crate::transport::{self, Blocking, Deadline, Stream};

/// How long a server may take to close a connection that we left.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// A time for which nobody needs to be told what is waited for.
const LEAST_REMINDER: Duration = Duration::from_millis(900);

/// Connects, and enters transmission with `export`.
pub fn enter(server: &Server, options: &Options, export: &str) -> Result<(Stream, Export), Error> {
    let goal = Goal::open(export).ok_or_else(|| failed(server, OpenError::LongName))?;
    match reach(server, options, goal)? {
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

/// Waits a little until the server has closed a connection that was left by `NBD_OPT_ABORT`, so that
/// it can get rid of its reply. The reply may be missing; it is of no interest.
fn leave(stream: &Stream) {
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
    // TLS servers complain of who leaves without a word.
    stream.finish_sending();
}

fn failed(server: &Server, cause: OpenError) -> Error {
    Error::Open {
        server: server.clone(),
        cause: Arc::new(cause),
    }
}

/// Connects and shakes hands. Whatever the goal, the same TLS policy and deadlines apply.
fn reach(server: &Server, options: &Options, goal: Goal) -> Result<(Stream, Outcome), Error> {
    // A file that is of no use does not cost the server a connection.
    let tls = match options.tls_policy {
        TlsPolicy::Off => None,
        TlsPolicy::Allow | TlsPolicy::Require => Some(options.tls.prepare()),
    };
    let tls = tls
        .transpose()
        .map_err(|error| failed(server, OpenError::Credentials(error)))?;
    let connecting = Deadline::after_maybe(options.connect_timeout).while_wanted(options.wanted);
    let mut stream = options
        .target
        .connect(connecting)
        .map_err(|error| failed(server, OpenError::Connect(error)))?;
    let deadline = Deadline::after_maybe(options.handshake_timeout).while_wanted(options.wanted);
    let mut awaiting = options.target.await_greeting(&stream, deadline.third());
    if matches!(awaiting, Err(transport::Error::Timeout(_))) && !deadline.has_passed() {
        say_what_is_awaited(server, deadline.third(), &options.target.awaited());
        awaiting = options.target.await_greeting(&stream, deadline);
    }
    awaiting.map_err(|error| {
        let cause = match error {
            // No connection came about, and that is why.
            transport::Error::ServerEnded(_) | transport::Error::TunnelEnded(_) => {
                OpenError::Connect(error)
            }
            error => OpenError::Broken {
                error,
                awaited: options.target.awaited(),
            },
        };
        failed(server, cause)
    })?;
    let goal = goal.with_tls(options.tls_policy);
    let outcome = shake_hands(server, &mut stream, goal, tls.as_ref(), deadline)
        .map_err(|cause| failed(server, cause))?;
    Ok((stream, outcome))
}

/// Runs the handshake machine over a stream. One deadline covers all of it, so a server cannot
/// stretch it by saying little, but often.
fn shake_hands(
    server: &Server,
    stream: &mut Stream,
    goal: Goal,
    tls: Option<&Prepared<'_>>,
    deadline: Deadline,
) -> Result<Outcome, OpenError> {
    let mut machine = Handshake::new(goal);
    let mut reminder = Some(deadline.third());
    let certificates =
        tls.is_some_and(|tls| matches!(tls.settings().credentials, Credentials::X509(_)));
    let mut bytes = Vec::new();
    loop {
        let broken = |machine: &Handshake, error: transport::Error| {
            if error.is_of_tls() {
                OpenError::Tls(error)
            } else if machine.may_be_refused() && certificates {
                OpenError::Unwelcome(error)
            } else {
                OpenError::Broken {
                    error,
                    awaited: machine.awaited(),
                }
            }
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
                remind(server, stream, &machine, &mut reminder)
                    .map_err(|error| broken(&machine, error))?;
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
                // The machine asks for it only where the policy allows it.
                let tls = tls.ok_or(OpenError::Goal)?;
                let proof = stream
                    .start_tls(tls, deadline)
                    .map_err(|error| broken(&machine, error))?;
                machine.tls_established(proof);
            }
            Step::Done => return machine.finish().ok_or(OpenError::Goal),
        }
    }
}

/// Waits for the server to say something until a third of the time is over, and then says, once,
/// what is waited for: somebody may be looking at a program that does nothing.
fn remind(
    server: &Server,
    stream: &Stream,
    machine: &Handshake,
    reminder: &mut Option<Deadline>,
) -> Result<(), transport::Error> {
    let Some(third) = reminder else {
        return Ok(());
    };
    if !third.is_never() && stream.wait(true, false, None, *third)?.expired {
        say_what_is_awaited(server, *third, &machine.awaited());
        *reminder = None;
    }
    Ok(())
}

fn say_what_is_awaited(server: &Server, deadline: Deadline, awaited: &str) {
    if deadline
        .length()
        .is_some_and(|length| length >= LEAST_REMINDER)
    {
        log::warn!(
            target: "slow-handshake",
            "{server}: handshake: still waiting for {awaited}"
        );
    }
}

fn describe(server: &Server, export: &Export) {
    log::debug!(
        "{server}: export of {} bytes, {:?}, structured replies {}, base:allocation {}",
        export.advertised_size,
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
    if export.size != export.advertised_size {
        log::info!(
            "{server}: the last {} bytes are less than a block and cannot be reached",
            export.advertised_size - export.size
        );
    }
}

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}
