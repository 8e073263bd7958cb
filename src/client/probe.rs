// SPDX-License-Identifier: BSD-3-Clause
//! Finding out what a server is, without serving anybody: one option after the other, each as a question
//! of its own, and what was answered goes into a [`report`].
//!
//! No export is opened where the server tells of one that is not: there are servers that end with the
//! first client that has opened one. A server that hangs up over a question is connected to again, for
//! the next one. Nothing is read of any disk.
//!
//! How much is asked does not depend on the server: so many exports are asked for their size at most, so
//! many rounds are timed, and all of it together must be over when connecting and a handshake would be.

pub mod report;

use std::time::Instant;

use self::report::{Answer, Export, Facts, Listing, OPTIONS, Reach, Report, RoundTrip};
use super::error::{Error, OpenError, Server};
use super::negotiation::{AtHand, End, Most, Negotiation, see_off};
use super::open::{self, failed, hung_up};
use super::{Fleet, Options};
use crate::proto::consts::{Command, OptionReply, OptionType, TransmissionFlags};
use crate::proto::handshake::{self, Described, Goal, Listed, Outcome, Style, TlsPolicy};
use crate::proto::name::ExportName;
use crate::proto::request::{Cookie, Request};
use crate::transport::{Deadline, Target, tls};

/// Most exports that are asked for their size, and told of: each takes the time of a question.
pub const MAX_EXPORTS: usize = 100;

/// So many rounds are timed.
const ROUNDS: usize = 5;

/// What became of one server.
pub type Found = (Server, Result<Report, Error>);

/// Why an option was not asked.
const SPARED: &str = "spared by quirks";
const DEMANDS_TLS: &str = "the server demands TLS first";
const NO_OPTIONS: &str = "the server takes no such questions";
const NEEDS_CHUNKS: &str = "needs structured replies";
const OPENS: &str = "opens the export";
const TLS_ONLY: &str = "TLS is required";

/// Asks each of the servers in turn. What they are asked for is `export`, or what the user said of each.
pub fn probe(options: &Options, export: &ExportName) -> Vec<Found> {
    let first = std::iter::once((options, export));
    let others = options.fleet.iter().flat_map(Fleet::others);
    let all = first.chain(others.map(|another| (&*another.options, &another.export)));
    all.map(|(options, export)| {
        let server: Server = options.target.to_string().into();
        let report = Inquiry::new(&server, options, export).carry_out();
        (server, report)
    })
    .collect()
}

/// A server that is being asked.
struct Inquiry<'a> {
    server: &'a Server,
    options: &'a Options,
    export: &'a ExportName,
    deadline: Deadline,
    negotiation: Option<Negotiation>,
    answers: Vec<(OptionType, Answer)>,
    style: Option<Style>,
    tls: Option<tls::Facts>,
}

impl<'a> Inquiry<'a> {
    fn new(server: &'a Server, options: &'a Options, export: &'a ExportName) -> Self {
        let most = options
            .times
            .connect
            .get()
            .zip(options.times.handshake.get());
        Self {
            server,
            options,
            export,
            deadline: Deadline::after_maybe(most.map(|(connect, shake)| connect + shake)),
            negotiation: None,
            answers: Vec::new(),
            style: None,
            tls: None,
        }
    }

    fn carry_out(mut self) -> Result<Report, Error> {
        let none = ExportName::default();
        let listed = match self.ask(OptionType::LIST, &none)? {
            Some(Outcome::Listing(listed)) => Some(listed),
            _ => None,
        };
        let can_ask = self.style == Some(Style::FixedNewstyle) || self.style.is_none();
        let (mut facts, mut contexts, mut round_trip) = (None, Vec::new(), None);
        if can_ask && self.demands_tls() != Some(true) {
            let ladder = self.options.manners.ladder();
            self.ask_if(ladder.has_structured(), OptionType::STRUCTURED_REPLY)?;
            self.ask_if(ladder.has_extended(), OptionType::EXTENDED_HEADERS)?;
            facts = match self.ask_if(ladder.can_describe(), OptionType::INFO)? {
                Some(Outcome::Described(described)) => described.into_facts(),
                _ => None,
            };
            self.insist()?;
            if self.has_chunks() {
                contexts = match self.ask_if(ladder.has_meta(), OptionType::LIST_META_CONTEXT)? {
                    Some(Outcome::Contexts(names)) => names,
                    _ => Vec::new(),
                };
                self.ask_if(ladder.has_meta(), OptionType::SET_META_CONTEXT)?;
            }
            round_trip = self.time();
        }
        let listing = listed.map(|listed| self.sizes(listed));
        if can_ask && self.tls.is_none() {
            if self.options.tls_policy == TlsPolicy::Require {
                self.note(OptionType::STARTTLS, Answer::NotAsked(TLS_ONLY));
            } else if self.ask(OptionType::STARTTLS, &none)?.is_some() {
                // Nothing may follow but TLS: not even a goodbye.
                self.negotiation = None;
            }
        }
        // nbd-server says 0 to whoever has not opened it.
        let untold = facts.as_ref().is_none_or(|facts: &Facts| facts.size == 0);
        if untold && self.must_open() {
            facts = Some(self.open()?);
        }
        if let Some(negotiation) = self.negotiation.take() {
            negotiation.leave();
        }
        Ok(self.report(listing, facts, contexts, round_trip))
    }

    /// Asks one thing, over the connection at hand or a new one. A refusal is an answer, and so is that
    /// the server hangs up.
    fn ask(&mut self, option: OptionType, export: &ExportName) -> Result<Option<Outcome>, Error> {
        let (outcome, answer) = self.put(option, export)?;
        self.note(option, answer);
        Ok(outcome)
    }

    /// [`Inquiry::ask`] of the export that the user is after, unless the server is to be spared.
    fn ask_if(&mut self, may: bool, option: OptionType) -> Result<Option<Outcome>, Error> {
        if !may {
            self.note(option, Answer::NotAsked(SPARED));
            return Ok(None);
        }
        if needs_chunks(option) && !self.is_alive() {
            // Another connection has agreed to nothing yet.
            let framing = [OptionType::EXTENDED_HEADERS, OptionType::STRUCTURED_REPLY];
            let agreed = framing.into_iter().find(|option| self.agreed_to(*option));
            if let Some(framing) = agreed {
                self.put(framing, self.export)?;
            }
        }
        self.ask(option, self.export)
    }

    fn put(
        &mut self,
        option: OptionType,
        export: &ExportName,
    ) -> Result<(Option<Outcome>, Answer), Error> {
        let (server, options) = (self.server, self.options);
        let goal = Goal::question(option, export);
        let most = Most::Each(open::left(self.deadline));
        let mut at_hand = AtHand::default();
        let mut unanswered = Some(option);
        let asked = match self.negotiation.take().filter(Negotiation::is_alive) {
            Some(negotiation) => negotiation.ask(options, goal, most, &mut at_hand.negotiation),
            None => {
                let mut end = End::default();
                let begun = Negotiation::begin(server, options, goal, &mut end, most, &mut at_hand);
                unanswered = end.unanswered;
                begun
            }
        };
        let (outcome, answer) = match asked {
            Ok((negotiation, outcome)) => {
                at_hand.negotiation = Some(negotiation);
                let answer = match outcome {
                    Outcome::NoOptions => Answer::NotAsked(NO_OPTIONS),
                    _ => Answer::Agreed,
                };
                (Some(outcome), answer)
            }
            Err(OpenError::Handshake(handshake::Error::Refused(refusal)))
                if refusal.option == option =>
            {
                let (reply, text) = (refusal.reply, refusal.text);
                (None, Answer::Refused { reply, text })
            }
            Err(cause) if hung_up(&cause) && unanswered == Some(option) => {
                log::info!("{server}: {cause}; going on without this question");
                (None, Answer::HungUp)
            }
            Err(cause) => return Err(failed(server, cause)),
        };
        self.negotiation = at_hand.negotiation;
        if let Some(negotiation) = &self.negotiation {
            self.style = negotiation.style();
            self.tls = negotiation.tls_facts();
        } else if !matches!(answer, Answer::NotAsked(_)) {
            // Who is asked anything knows fixed newstyle.
            self.style = Some(Style::FixedNewstyle);
        }
        Ok((outcome, answer))
    }

    /// Where the user has named the export, that there is none is a failure.
    fn insist(&mut self) -> Result<(), Error> {
        match self.answer(OptionType::INFO) {
            Some(Answer::Refused { reply, text }) if !self.export.is_empty() => {
                if *reply == OptionReply::ERR_UNSUP || *reply == OptionReply::ERR_TLS_REQD {
                    return Ok(());
                }
                let refusal = crate::proto::Refusal {
                    option: OptionType::INFO,
                    reply: *reply,
                    text: text.clone(),
                    export: self.export.clone(),
                    protected: self.tls.is_some(),
                    extended: false,
                };
                self.negotiation
                    .take()
                    .into_iter()
                    .for_each(Negotiation::leave);
                Err(failed(self.server, OpenError::Handshake(refusal.into())))
            }
            _ => Ok(()),
        }
    }

    /// The list with the sizes of its first entries, as far as there is time.
    fn sizes(&mut self, listed: Vec<Listed>) -> Listing {
        let total = listed.len();
        let mut ask = self.agreed_to(OptionType::INFO)
            || matches!(
                self.answer(OptionType::INFO),
                Some(Answer::Refused { reply, .. }) if *reply == OptionReply::ERR_UNKNOWN
            );
        let mut exports = Vec::new();
        for entry in listed.into_iter().take(MAX_EXPORTS) {
            let mut size = None;
            if ask && self.is_alive() && !self.deadline.has_passed() {
                match self.put(OptionType::INFO, &entry.name) {
                    Ok((Some(Outcome::Described(described)), _)) => {
                        let told = described.export.map(|(size, _)| size);
                        size = told.filter(|size| *size > 0);
                    }
                    Ok((_, Answer::Refused { .. })) => (),
                    _ => ask = false,
                }
            }
            exports.push((entry, size));
        }
        Listing { exports, total }
    }

    /// Times some rounds of a question that costs the server nothing, whatever its answer.
    fn time(&mut self) -> Option<RoundTrip> {
        self.answer(OptionType::INFO)?.is_known()?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            if !self.is_alive() || self.deadline.has_passed() {
                break;
            }
            let begun = Instant::now();
            match self.put(OptionType::INFO, self.export) {
                Ok((_, Answer::Agreed | Answer::Refused { .. })) => times.push(begun.elapsed()),
                _ => break,
            }
        }
        times.sort_unstable();
        let median = *times.get(times.len() / 2)?;
        Some(RoundTrip {
            median,
            rounds: times.len(),
        })
    }

    /// Whether an export is told of by opening it alone.
    fn must_open(&self) -> bool {
        if self.demands_tls() == Some(true) {
            return false;
        }
        match self.answer(OptionType::INFO) {
            None | Some(Answer::HungUp | Answer::NotAsked(_)) => true,
            Some(Answer::Refused { reply, .. }) => *reply == OptionReply::ERR_UNSUP,
            Some(Answer::Agreed) => true,
        }
    }

    /// Opens the export, and leaves it at once.
    fn open(&mut self) -> Result<Facts, Error> {
        let mut at_hand = AtHand {
            negotiation: self.negotiation.take(),
            instead: None,
        };
        let (server, options, deadline) = (self.server, self.options, self.deadline);
        let entered = open::enter_before(server, options, self.export, deadline, &mut at_hand);
        at_hand.leave();
        let (stream, export) = entered?;
        let goodbye = Request::new(Command::DISC, 0, 0_u32).encode(Cookie(0), export.framing);
        see_off(&stream, goodbye.bytes());
        Ok(Facts {
            size: export.size,
            flags: export.flags,
            block_sizes: export.block_sizes,
            canonical_name: export.canonical_name,
            description: export.description,
        })
    }

    fn report(
        mut self,
        listing: Option<Listing>,
        facts: Option<Facts>,
        contexts: Vec<Vec<u8>>,
        round_trip: Option<RoundTrip>,
    ) -> Report {
        let demands_tls = self.demands_tls();
        if self.tls.is_some() {
            self.note(OptionType::STARTTLS, Answer::Agreed);
        }
        self.note(OptionType::GO, Answer::NotAsked(OPENS));
        let style = self.style.unwrap_or(Style::FixedNewstyle);
        let why = match style {
            Style::FixedNewstyle if demands_tls == Some(true) => DEMANDS_TLS,
            Style::FixedNewstyle => NEEDS_CHUNKS,
            _ => NO_OPTIONS,
        };
        for option in OPTIONS {
            self.note(option, Answer::NotAsked(why));
        }
        let offers_tls = match (style, self.answer(OptionType::STARTTLS)) {
            (Style::FixedNewstyle, Some(Answer::Agreed)) => Some(true),
            (Style::FixedNewstyle, Some(Answer::NotAsked(_)) | None) => None,
            _ => Some(false),
        };
        let answer = |option| {
            let answer = self.answer(option).cloned();
            (option, answer.unwrap_or(Answer::NotAsked(why)))
        };
        Report {
            server: self.server.clone(),
            reach: match self.options.target {
                Target::Tcp { .. } => Reach::Network,
                Target::Ssh(_) => Reach::Tunnel,
                _ => Reach::Local,
            },
            tls_policy: self.options.tls_policy,
            style,
            offers_tls,
            demands_tls,
            options: OPTIONS.into_iter().map(answer).collect(),
            tls: self.tls,
            listing,
            export: Export {
                name: self.export.clone(),
                facts,
                contexts,
            },
            round_trip,
        }
    }

    /// Whether the server insists on TLS, as far as it was asked without.
    fn demands_tls(&self) -> Option<bool> {
        let demands = |answer: &Answer| match answer {
            Answer::Refused { reply, .. } => *reply == OptionReply::ERR_TLS_REQD,
            _ => false,
        };
        self.tls
            .is_none()
            .then(|| self.answers.iter().any(|(_, answer)| demands(answer)))
    }

    /// The first answer counts.
    fn note(&mut self, option: OptionType, answer: Answer) {
        if self.answer(option).is_none() {
            self.answers.push((option, answer));
        }
    }

    fn answer(&self, option: OptionType) -> Option<&Answer> {
        let mut all = self.answers.iter();
        all.find(|(asked, _)| *asked == option)
            .map(|(_, answer)| answer)
    }

    fn agreed_to(&self, option: OptionType) -> bool {
        self.answer(option) == Some(&Answer::Agreed)
    }

    fn has_chunks(&self) -> bool {
        self.agreed_to(OptionType::STRUCTURED_REPLY) || self.agreed_to(OptionType::EXTENDED_HEADERS)
    }

    fn is_alive(&self) -> bool {
        self.negotiation.as_ref().is_some_and(Negotiation::is_alive)
    }
}

/// Whether an option is answered better, or at all, where replies have chunks.
fn needs_chunks(option: OptionType) -> bool {
    [
        OptionType::INFO,
        OptionType::LIST_META_CONTEXT,
        OptionType::SET_META_CONTEXT,
    ]
    .contains(&option)
}

impl Described {
    fn into_facts(self) -> Option<Facts> {
        let (size, flags) = self.export?;
        Some(Facts {
            size,
            flags: TransmissionFlags::from_bits_truncate(flags),
            block_sizes: self.block_sizes,
            canonical_name: self.canonical_name,
            description: self.description,
        })
    }
}
