// SPDX-License-Identifier: BSD-3-Clause
//! What a handshake knows of metadata contexts: those that the server named, the one that was agreed, and the
//! names that may stand for an export and a bitmap of it.

use super::{Error, Listed};
use crate::proto::Refusal;
use crate::proto::codec::printable;
use crate::proto::consts::MAX_STRING;
use crate::proto::context::{ContextName, DIRTY_BITMAP, Wish, bitmap_of};
use crate::proto::export::Agreed;
use crate::proto::name::ExportName;

/// Most names of contexts that are kept of one list, and most bytes of them.
const MAX_NAMES: usize = 1024;
const MAX_BYTES: usize = 256 * 1024;
/// Bytes of names that a message quotes.
const QUOTED: usize = 1024;
/// Most places at which a name is taken apart: each costs the server a question.
const MAX_PLACES: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Contexts {
    agreed: Option<Agreed>,
    names: Vec<Vec<u8>>,
    bytes: usize,
    /// The places where the export's name may be taken apart that have not been tried, and the
    /// server's answer to the whole name, once it was known not to be an export's.
    apart: Option<(Vec<usize>, Refusal)>,
}

impl Contexts {
    /// The context that was agreed.
    pub fn agreed(&self) -> Option<&Agreed> {
        self.agreed.as_ref()
    }

    /// The same, to be kept.
    pub fn take(&mut self) -> Option<Agreed> {
        self.agreed.take()
    }

    /// The server agrees to a context. False if it has done so before.
    pub fn agree(&mut self, name: ContextName, id: u32) -> bool {
        self.agreed.replace(Agreed { name, id }).is_none()
    }

    /// What was agreed, or listed, is void.
    pub fn forget(&mut self) {
        self.agreed = None;
        self.names.clear();
        self.bytes = 0;
    }

    /// The server lists a context. What is too much is forgotten.
    pub fn list(&mut self, name: &[u8]) {
        self.bytes += name.len();
        if name.len() > MAX_STRING || self.names.len() == MAX_NAMES || self.bytes > MAX_BYTES {
            log::debug!("ignoring a metadata context: its name, or the list, is too long");
            return;
        }
        self.names.push(name.to_owned());
    }

    /// What was listed.
    pub fn take_names(&mut self) -> Vec<Vec<u8>> {
        self.bytes = 0;
        std::mem::take(&mut self.names)
    }

    /// The only dirty bitmap among those that were listed.
    pub fn only_bitmap(&mut self, export: &ExportName) -> Result<ContextName, Error> {
        let names = self.take_names();
        let mut bitmaps = names
            .iter()
            .filter_map(|name| bitmap_of(name).and_then(ContextName::bitmap));
        match (bitmaps.next(), bitmaps.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(Error::SeveralBitmaps {
                export: export.clone(),
                names: quoted(names.iter().filter(|name| bitmap_of(name).is_some())),
            }),
            _ => Err(missing(&Wish::OnlyBitmap, export, &named(&names))),
        }
    }

    /// The error for one that was asked for in vain, with those that were listed.
    pub fn missing(&mut self, wish: &Wish, export: &ExportName) -> Error {
        missing(wish, export, &named(&self.take_names()))
    }

    /// There is no export of this name: takes it apart, once.
    pub fn take_apart(&mut self, export: &ExportName, refusal: Refusal) {
        let at = |place: &usize| export.as_bytes().get(*place) == Some(&b'@');
        let mut places: Vec<_> = (0..export.as_bytes().len()).filter(at).collect();
        // The last one is the first to be tried: names of disks with it are more likely.
        places.drain(..places.len().saturating_sub(MAX_PLACES));
        self.apart = Some((places, refusal));
    }

    /// Whether the name was taken apart.
    pub fn is_apart(&self) -> bool {
        self.apart.is_some()
    }

    /// The next export, and bitmap of it, that the name `whole` may stand for.
    pub fn next_apart(&mut self, whole: &ExportName) -> Result<(ExportName, ContextName), Refusal> {
        let Some((places, refusal)) = &mut self.apart else {
            unreachable!("taken apart before");
        };
        while let Some(place) = places.pop() {
            let (name, bitmap) = whole.as_bytes().split_at(place);
            let bitmap = bitmap.strip_prefix(b"@").and_then(ContextName::bitmap);
            if let (Some(name), Some(bitmap)) = (ExportName::new(name), bitmap) {
                return Ok((name, bitmap));
            }
        }
        Err(refusal.clone())
    }
}

/// The error for a context that the server does not have, or has no way to tell.
pub fn missing(wish: &Wish, export: &ExportName, has: &str) -> Error {
    Error::NoContext {
        wanted: wish.demanded().unwrap_or_default(),
        export: export.clone(),
        has: has.to_owned(),
    }
}

/// What a server has, for a message.
fn named(names: &[Vec<u8>]) -> String {
    match names {
        [] => "it has none".to_owned(),
        names => format!("it has {}", quoted(names.iter())),
    }
}

fn quoted<'a>(names: impl Iterator<Item = &'a Vec<u8>>) -> String {
    let names: Vec<_> = names.map(Vec::as_slice).collect();
    printable(&names.join(&b", "[..]), QUOTED)
}

/// The export that shows a bitmap of another one; `None` if its name would be too long.
pub fn by_name(export: &Listed, context: &[u8]) -> Option<Listed> {
    let bitmap = bitmap_of(context)?;
    let name = [export.name.as_bytes(), b"@", bitmap].concat();
    let shown = printable(bitmap, MAX_STRING);
    Some(Listed {
        name: ExportName::new(name)?,
        description: format!("changes by the bitmap {DIRTY_BITMAP}{shown}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::consts::{OptionReply, OptionType};

    fn name(text: &str) -> ExportName {
        ExportName::new(text).expect("a name")
    }

    fn refusal() -> Refusal {
        Refusal {
            option: OptionType::GO,
            reply: OptionReply::ERR_UNKNOWN,
            text: String::new(),
            export: name("x"),
            protected: false,
            extended: false,
        }
    }

    /// The pairs that a name may stand for, in the order in which they are tried.
    fn apart(text: &str) -> Vec<(String, String)> {
        let whole = name(text);
        let mut contexts = Contexts::default();
        contexts.take_apart(&whole, refusal());
        let pair =
            |(export, bitmap): (ExportName, ContextName)| (export.to_string(), bitmap.to_string());
        std::iter::from_fn(|| contexts.next_apart(&whole).ok().map(pair)).collect()
    }

    #[test]
    fn a_name_is_taken_apart_from_its_end() {
        let pair =
            |export: &str, bitmap: &str| (export.to_owned(), format!("qemu:dirty-bitmap:{bitmap}"));
        assert_eq!(apart("disk"), []);
        assert_eq!(apart("disk@"), []);
        assert_eq!(apart("@b"), [pair("", "b")]);
        assert_eq!(apart("a@b@c"), [pair("a@b", "c"), pair("a", "b@c")]);
        let many = apart(&"x@".repeat(2000));
        assert_eq!(many.len(), MAX_PLACES - 1, "behind the last one is nothing");
    }

    #[test]
    fn the_only_bitmap_is_taken_and_several_are_named() {
        let pick = |names: &[&str]| {
            let mut contexts = Contexts::default();
            names.iter().for_each(|name| contexts.list(name.as_bytes()));
            contexts
                .only_bitmap(&name("disk"))
                .map(|name| name.to_string())
                .map_err(|error| error.to_string())
        };
        let others = ["base:allocation", "qemu:allocation-depth"];
        assert_eq!(
            pick(&[others[0], "qemu:dirty-bitmap:b", others[1]]),
            Ok("qemu:dirty-bitmap:b".to_owned())
        );
        assert_eq!(
            pick(&others),
            Err(
                "the server has no context qemu:dirty-bitmap:* for export \"disk\": it has \
                 base:allocation, qemu:allocation-depth"
                    .to_owned()
            )
        );
        assert_eq!(
            pick(&["qemu:dirty-bitmap:b", "qemu:dirty-bitmap:\u{7}", "x"]),
            Err("the server has several dirty bitmaps for export \"disk\": \
                 qemu:dirty-bitmap:b, qemu:dirty-bitmap:\\u{7}: name one of them"
                .to_owned())
        );
    }

    #[test]
    fn a_list_without_end_takes_no_memory() {
        let mut contexts = Contexts::default();
        for _ in 0..100_000 {
            contexts.list(&[b'x'; 1000]);
        }
        assert!(contexts.names.len() * 1000 <= MAX_BYTES);
        contexts.forget();
        for _ in 0..100_000 {
            contexts.list(b"x");
        }
        assert_eq!(contexts.take_names().len(), MAX_NAMES);
    }
}
