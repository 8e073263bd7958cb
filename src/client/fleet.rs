// SPDX-License-Identifier: BSD-3-Clause
//! Several servers of one export: which are asked, in which order, and what is known of the first one that
//! answered.
//!
//! With [`Plan::Failover`] there is one server at a time; with [`Plan::Spread`] connections go to all of
//! them. A server that offers less than the first one that answered is left out.

use std::sync::{Arc, Mutex, PoisonError};

use super::Options;
use super::error::Server;
use crate::proto::export::Export;
use crate::proto::name::ExportName;
use crate::session::gate::{self, Protection};

/// What several servers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The next one is for when those before it cannot be had.
    Failover,
    /// All of them at once.
    Spread,
}

/// The servers beside the first one.
#[derive(Debug)]
pub struct Fleet {
    plan: Plan,
    others: Vec<Another>,
    /// Nothing may be written, as nobody says that they have one disk.
    read_only: bool,
    reference: Mutex<Option<Reference>>,
}

/// Another server, and the export there.
#[derive(Debug)]
pub struct Another {
    /// How to reach it.
    pub options: Arc<Options>,
    /// What to ask for there.
    pub export: ExportName,
}

/// What the first server that answered has offered.
#[derive(Debug)]
struct Reference {
    at: usize,
    export: Export,
    protection: Protection,
}

impl Fleet {
    /// Servers of which nothing is known yet.
    pub fn new(plan: Plan, others: Vec<Another>, read_only: bool) -> Self {
        Self {
            plan,
            others,
            read_only,
            reference: Mutex::default(),
        }
    }

    /// What they are for.
    pub(super) fn plan(&self) -> Plan {
        self.plan
    }

    /// How many there are beside the first one.
    pub(super) fn others(&self) -> &[Another] {
        &self.others
    }

    /// Whether nothing may be written.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What is worse at the server `at` than at the first one that answered.
    pub(super) fn difference(
        &self,
        at: usize,
        offer: &Export,
        protection: Protection,
    ) -> Option<String> {
        let mut reference = self
            .reference
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*reference {
            Some(first) if first.at != at => {
                gate::difference((&first.export, first.protection), (offer, protection))
            }
            // It may have changed since, for those who come now.
            _ => {
                *reference = Some(Reference {
                    at,
                    export: offer.clone(),
                    protection,
                });
                None
            }
        }
    }

    /// The names of all of them.
    pub(super) fn names(&self, first: &str) -> Server {
        let others = self.others.iter();
        others
            .fold(first.to_owned(), |names, another| {
                format!("{names}, {}", another.options.target)
            })
            .into()
    }
}
