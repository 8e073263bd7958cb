//! Opening: connect, drive the handshake, both within their deadlines.

use std::sync::Arc;

use super::error::{Error, OpenError, Server};
use super::{Options, Target};
use crate::proto::export::Export;
use crate::proto::handshake::{Handshake, Step};
use crate::transport::{Deadline, Stream, unix};

/// A connected stream at the beginning of transmission.
pub fn open(server: &Server, options: &Options) -> Result<(Stream, Export), Error> {
    let failed = |cause| Error::Open {
        server: server.clone(),
        cause: Arc::new(cause),
    };
    let connecting = Deadline::after_maybe(options.connect_timeout);
    let stream = match &options.target {
        Target::Unix(path) => unix::open(path, connecting),
    };
    let stream = stream.map_err(|error| failed(OpenError::Connect(error)))?;
    log::debug!("{server}: connected");
    let export = shake_hands(&stream, options).map_err(failed)?;
    describe(server, &export);
    Ok((stream, export))
}

/// Runs the handshake machine over a stream. One deadline covers all of it, so a server cannot
/// stretch it by saying little, but often.
fn shake_hands(stream: &Stream, options: &Options) -> Result<Export, OpenError> {
    let deadline = Deadline::after_maybe(options.handshake_timeout);
    let mut machine = Handshake::new(options.goal.clone());
    let mut bytes = Vec::new();
    loop {
        let broken = |machine: &Handshake, error| OpenError::Broken {
            error,
            awaited: machine.awaited(),
        };
        match machine.step() {
            Step::Send(bytes) => stream
                .send_all(&bytes, deadline)
                .map_err(|error| broken(&machine, error))?,
            Step::Receive(n) => {
                // The machine bounds n.
                bytes.resize(n, 0);
                stream
                    .receive_exact(&mut bytes, deadline)
                    .map_err(|error| broken(&machine, error))?;
                machine.received(&bytes).map_err(OpenError::Handshake)?;
            }
            Step::Done(export) => return Ok(*export),
        }
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
