// SPDX-License-Identifier: BSD-3-Clause
//! M8: each rule is needed. Without it a random session goes wrong; with all of them none does
//! (`random.rs`, `small_scope.rs`).

use super::random;
use crate::session::rules::Rules;

/// Sessions that are tried, at most.
const SESSIONS: u64 = 20_000;

fn is_needed(name: &str, switch_off: impl Fn(&mut Rules)) {
    let mut rules = Rules::ALL;
    switch_off(&mut rules);
    match random::search(rules, 0, SESSIONS) {
        Some((seed, wrong)) => println!("without {name}, session {seed}: {wrong}"),
        None => panic!("nothing goes wrong without {name}"),
    }
}

macro_rules! needed {
    ($($rule:ident)*) => {
        $(
            #[test]
            fn $rule() {
                is_needed(stringify!($rule), |rules| rules.$rule = false);
            }
        )*
    };
}

needed! {
    acknowledged_before
    own_or_older
    own_turn
    rewrite_after_failure
    one_at_a_time
    own_burial
    newest_only
    hold_while_rewriting
    reads_wait
    one_journal
    failure_is_final
}
