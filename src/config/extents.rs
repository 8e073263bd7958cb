// SPDX-License-Identifier: BSD-3-Clause
//! Where the extents come from that clients see.

use super::{Error, params};
use crate::proto::context::{ContextName, DIRTY_BITMAP, Wish};
use crate::proto::ladder::Ladder;

const BAD: &str = "must be base:allocation, qemu:dirty-bitmap:NAME, qemu:dirty-bitmap:*, \
                   qemu:allocation-depth, by-name or list";

/// What `extents=` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extents {
    /// From there.
    From(Wish),
    /// Nobody is served: what there is is told.
    List,
}

impl Default for Extents {
    fn default() -> Self {
        Self::From(Wish::default())
    }
}

impl Extents {
    /// The meaning of a value.
    pub fn parse(value: &[u8]) -> Result<Self, Error> {
        Ok(Self::From(match value {
            b"list" => return Ok(Self::List),
            b"by-name" => Wish::ByName,
            b"base:allocation" => Wish::Allocation,
            _ if value.strip_prefix(DIRTY_BITMAP.as_bytes()) == Some(b"*") => Wish::OnlyBitmap,
            _ => match ContextName::new(value) {
                Some(name) => Wish::This(name),
                None => return Err(params::bad("extents", value, BAD)),
            },
        }))
    }

    /// Whether it is of no use without certain contexts.
    pub fn needs_contexts(&self) -> bool {
        match self {
            Self::From(wish) => wish.needs_contexts(),
            Self::List => true,
        }
    }

    /// Checks that it makes sense together with the choice of the export.
    pub fn check(&self, dynamic: bool) -> Result<(), Error> {
        match self {
            Self::From(Wish::ByName) if !dynamic => Err(Error::ByNameWithoutDynamic),
            Self::List if dynamic => Err(Error::ListWithDynamic),
            _ => Ok(()),
        }
    }

    /// Checks that what has to be asked for it may be.
    pub fn check_asked(&self, ladder: Ladder) -> Result<(), Error> {
        let needs = self.needs_contexts();
        match self {
            _ if needs && !ladder.has_structured() => Err(Error::QuirkWithExtents("no-structured")),
            _ if needs && !ladder.has_meta() => Err(Error::QuirkWithExtents("no-meta")),
            Self::From(Wish::ByName) if !ladder.can_describe() => Err(Error::ByNameWithoutGo),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Extents, String> {
        Extents::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn contexts_that_can_be_told_as_extents_are_taken() {
        let this = |name: &str| {
            let name = ContextName::new(name.as_bytes()).expect("known");
            Ok(Extents::From(Wish::This(name)))
        };
        assert_eq!(parse("base:allocation"), Ok(Extents::default()));
        assert_eq!(
            parse("qemu:dirty-bitmap:*"),
            Ok(Extents::From(Wish::OnlyBitmap))
        );
        assert_eq!(parse("by-name"), Ok(Extents::From(Wish::ByName)));
        assert_eq!(parse("list"), Ok(Extents::List));
        for name in [
            "qemu:allocation-depth",
            "qemu:dirty-bitmap:b",
            "qemu:dirty-bitmap:*b",
        ] {
            assert_eq!(parse(name), this(name));
        }
        for wrong in [
            "",
            "LIST",
            "base:",
            "qemu:dirty-bitmap:",
            "qemu:*",
            "x-y:z",
            "list ",
        ] {
            let error = parse(wrong).expect_err(wrong);
            assert!(
                error.starts_with(&format!("extents={wrong}: must be ")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_not_to_be_asked_cannot_be_told() {
        let all = Ladder::default();
        let check = |text: &str, ladder| {
            let checked = parse(text).expect("legal").check_asked(ladder);
            checked.map_err(|error| error.to_string())
        };
        let contexts = |word: &str| {
            Err(format!(
                "cannot use ‘quirks={word}’ with ‘extents’ other than base:allocation: no context is \
                 asked for then"
            ))
        };
        for text in [
            "list",
            "by-name",
            "qemu:dirty-bitmap:b",
            "qemu:dirty-bitmap:*",
            "qemu:allocation-depth",
        ] {
            assert_eq!(check(text, all.without_extended()), Ok(()), "{text}");
            assert_eq!(check(text, all.without_meta()), contexts("no-meta"));
            let simple = all.without_structured();
            assert_eq!(check(text, simple), contexts("no-structured"));
        }
        for ladder in [
            all.without_meta(),
            all.without_structured(),
            all.without_go(),
        ] {
            assert_eq!(check("base:allocation", ladder), Ok(()));
        }
        assert_eq!(check("qemu:dirty-bitmap:b", all.without_go()), Ok(()));
        let error = check("by-name", all.without_go()).expect_err("never found");
        assert!(error.contains("‘quirks=no-opt-go’"), "{error}");
    }

    #[test]
    fn some_need_a_choice_of_exports_and_some_need_one_export() {
        let check = |text: &str, dynamic| parse(text).expect("legal").check(dynamic).is_ok();
        assert!(check("by-name", true) && !check("by-name", false));
        assert!(check("list", false) && !check("list", true));
        assert!(check("qemu:dirty-bitmap:b", true) && check("qemu:dirty-bitmap:b", false));
    }
}
