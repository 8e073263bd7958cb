// SPDX-License-Identifier: BSD-3-Clause
//! The gate: what a new connection must offer to take the place of a lost one.

use crate::proto::consts::TransmissionFlags;
use crate::proto::export::Export;

/// Abilities that nbdkit was told of, by the specification's names. `NBD_FLAG_ROTATIONAL` and
/// `NBD_FLAG_SEND_DF` are none that anything rests on.
const ABILITIES: [(TransmissionFlags, &str); 7] = [
    (TransmissionFlags::SEND_FLUSH, "NBD_FLAG_SEND_FLUSH"),
    (TransmissionFlags::SEND_FUA, "NBD_FLAG_SEND_FUA"),
    (TransmissionFlags::SEND_TRIM, "NBD_FLAG_SEND_TRIM"),
    (
        TransmissionFlags::SEND_WRITE_ZEROES,
        "NBD_FLAG_SEND_WRITE_ZEROES",
    ),
    (TransmissionFlags::SEND_FAST_ZERO, "NBD_FLAG_SEND_FAST_ZERO"),
    (TransmissionFlags::SEND_CACHE, "NBD_FLAG_SEND_CACHE"),
    (TransmissionFlags::CAN_MULTI_CONN, "NBD_FLAG_CAN_MULTI_CONN"),
];

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// TLS is on.
    pub tls: bool,
}

/// What is worse than it was, for the user; `None` if nothing is. A smaller maximum block is not:
/// requests are cut to it.
pub fn difference(was: (&Export, Protection), is: (&Export, Protection)) -> Option<String> {
    let ((was, had), (is, has)) = (was, is);
    if had.tls && !has.tls {
        return Some("the connection had TLS, and has it no more".to_owned());
    }
    if was.size != is.size {
        return Some(format!(
            "the export had {} bytes, and has {}",
            was.size, is.size
        ));
    }
    let read_only = TransmissionFlags::READ_ONLY;
    if is.can(read_only) && !was.can(read_only) {
        return Some("the export could be written, and is read-only now".to_owned());
    }
    for (flag, name) in ABILITIES {
        if was.can(flag) && !is.can(flag) {
            return Some(format!("the server had {name}, and has it no more"));
        }
    }
    if let Some(name) = was.context_name() {
        if is.context_name() != Some(name) {
            return Some(format!(
                "the server had the context {name}, and has it no more"
            ));
        }
    }
    if was.canonical_name != is.canonical_name {
        let name = |export: &Export| match &export.canonical_name {
            Some(name) => format!("\"{name}\""),
            None => "without a name of the server's".to_owned(),
        };
        return Some(format!("the export was {}, and is {}", name(was), name(is)));
    }
    if is.minimum_block() > was.minimum_block() {
        return Some(format!(
            "the minimum block size was {}, and is {}",
            was.minimum_block(),
            is.minimum_block()
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::context::ContextName;
    use crate::proto::export::{Agreed, BlockSizes};
    use crate::proto::framing::Framing;
    use crate::proto::name::ExportName;

    const CLEAR: Protection = Protection { tls: false };
    const SECURE: Protection = Protection { tls: true };

    fn export() -> Export {
        let mut export = Export::new(
            1 << 20,
            TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            Framing::Extended,
        );
        export.block_sizes = BlockSizes::checked(512, 4096, 1 << 20);
        export.canonical_name = ExportName::new(b"disk".to_vec());
        export.context = allocation(1);
        export
    }

    fn allocation(id: u32) -> Option<Agreed> {
        let name = ContextName::allocation();
        Some(Agreed { name, id })
    }

    fn told(change: impl FnOnce(&mut Export)) -> Option<String> {
        let mut changed = export();
        change(&mut changed);
        difference((&export(), CLEAR), (&changed, CLEAR))
    }

    #[test]
    fn what_is_the_same_or_better_passes() {
        assert_eq!(told(|_| ()), None);
        assert_eq!(told(|e| e.context = allocation(7)), None);
        assert_eq!(told(|e| e.description = Some("other".to_owned())), None);
        assert_eq!(told(|e| e.framing = Framing::Simple), None);
        assert_eq!(
            told(|e| e.block_sizes = BlockSizes::checked(1, 512, 4096)),
            None
        );
        assert_eq!(difference((&export(), CLEAR), (&export(), SECURE)), None);
        let read_only = Export::new(1 << 20, TransmissionFlags::all(), Framing::Structured);
        let mut better = read_only.clone();
        better.flags -= TransmissionFlags::READ_ONLY;
        assert_eq!(difference((&read_only, CLEAR), (&better, CLEAR)), None);
    }

    #[test]
    fn what_is_worse_is_named() {
        let missing = "no more";
        for (change, part) in [
            (
                Box::new(|e: &mut Export| e.size += 512) as Box<dyn FnOnce(&mut Export)>,
                "had 1048576 bytes, and has 1049088",
            ),
            (Box::new(|e: &mut Export| e.size -= 512), "has 1048064"),
            (
                Box::new(|e: &mut Export| e.flags |= TransmissionFlags::READ_ONLY),
                "read-only now",
            ),
            (
                Box::new(|e: &mut Export| e.context = None),
                "base:allocation",
            ),
            (
                Box::new(|e: &mut Export| e.canonical_name = None),
                "without a name",
            ),
            (
                Box::new(|e: &mut Export| e.canonical_name = ExportName::new(b"other".to_vec())),
                "was \"disk\", and is \"other\"",
            ),
            (
                Box::new(|e: &mut Export| e.block_sizes = BlockSizes::checked(4096, 4096, 1 << 20)),
                "was 512, and is 4096",
            ),
            (
                Box::new(|e: &mut Export| e.flags -= TransmissionFlags::SEND_FLUSH),
                missing,
            ),
        ] {
            let told = told(change).expect("worse");
            assert!(told.contains(part), "{told}");
        }
        for (flag, name) in ABILITIES {
            let told = told(|e| e.flags -= flag).expect("worse");
            assert!(told.contains(name), "{told}");
        }
        assert!(difference((&export(), SECURE), (&export(), CLEAR)).is_some());
    }
}
