// SPDX-License-Identifier: BSD-3-Clause
//! Maps that are kept, against a model that has a status for each unit.

use super::*;
use proptest::prelude::*;

const DATA: Allocation = Allocation::empty();
const ZERO: Allocation = Allocation::ZERO;

fn extents(all: &[(u64, Allocation)]) -> Vec<Descriptor> {
    let descriptor = |(units, status): &(u64, Allocation)| Descriptor {
        length: units * UNIT,
        status: *status,
    };
    all.iter().map(descriptor).collect()
}

/// A cache that knows ten units of volume 1: four of zeroes, two of data, four of zeroes.
fn filled() -> Cache {
    let mut cache = Cache::new(1 << 20);
    let query = cache.begin_query();
    cache.end_query(query, 1, 0, &extents(&[(4, ZERO), (2, DATA), (4, ZERO)]));
    cache
}

fn known(cache: &Cache, from: u64, units: u64) -> Vec<(u64, Allocation)> {
    let found = cache.known(1, from * UNIT, units * UNIT);
    let pair = |extent: &Descriptor| (extent.length / UNIT, extent.status);
    found.iter().map(pair).collect()
}

#[test]
fn what_was_answered_is_known_from_any_place() {
    let cache = filled();
    assert_eq!(known(&cache, 0, 10), [(4, ZERO), (2, DATA), (4, ZERO)]);
    assert_eq!(known(&cache, 5, 1), [(1, DATA)]);
    assert_eq!(
        known(&cache, 5, 2),
        [(1, DATA), (4, ZERO)],
        "the last as a whole"
    );
    assert_eq!(known(&cache, 10, 1), []);
    assert_eq!(cache.known(2, 0, 1), [], "another volume");
    assert!(cache.is_zero(1, 0, 4 * UNIT) && cache.is_zero(1, 9 * UNIT, UNIT));
    assert!(!cache.is_zero(1, 3 * UNIT, UNIT + 1), "data behind it");
    assert!(
        !cache.is_zero(1, 9 * UNIT, UNIT + 1),
        "nothing is known behind it"
    );
    assert!(!cache.is_zero(2, 0, 1));
}

#[test]
fn a_change_is_not_known_from_its_beginning_on() {
    let mut cache = filled();
    let change = cache.begin_change(UNIT + 5, 1);
    assert_eq!(known(&cache, 0, 10), [(1, ZERO)]);
    assert_eq!(known(&cache, 1, 1), []);
    assert_eq!(known(&cache, 2, 1), [(2, ZERO)]);
    // Asked for while it is under way, answered before and after.
    for early in [true, false] {
        let query = cache.begin_query();
        if !early {
            cache.end_change(change, false);
        }
        cache.end_query(query, 1, 0, &extents(&[(10, ZERO)]));
        assert_eq!(known(&cache, 1, 1), [], "{early}");
        assert_eq!(known(&cache, 2, 8), [(8, ZERO)], "{early}");
    }
    let query = cache.begin_query();
    cache.end_query(query, 1, 0, &extents(&[(10, ZERO)]));
    assert_eq!(
        known(&cache, 0, 10),
        [(10, ZERO)],
        "asked for after its answer"
    );
}

#[test]
fn a_change_during_a_question_spoils_the_answer() {
    let mut cache = Cache::new(1 << 20);
    let query = cache.begin_query();
    let change = cache.begin_change(0, 1);
    cache.end_change(change, false);
    cache.end_query(query, 1, 0, &extents(&[(2, ZERO)]));
    assert_eq!(known(&cache, 0, 1), []);
    assert_eq!(known(&cache, 1, 1), [(1, ZERO)]);
}

#[test]
fn what_was_never_answered_is_never_known_again() {
    let mut cache = filled();
    let change = cache.begin_change(0, UNIT);
    cache.end_change(change, true);
    let query = cache.begin_query();
    cache.end_query(query, 1, 0, &extents(&[(10, ZERO)]));
    assert_eq!(known(&cache, 0, 1), []);
    assert_eq!(known(&cache, 1, 9), [(9, ZERO)]);
}

#[test]
fn another_server_knows_nothing_of_the_first() {
    let mut cache = filled();
    let query = cache.begin_query();
    cache.forget();
    cache.end_query(query, 1, 0, &extents(&[(10, ZERO)]));
    assert_eq!(known(&cache, 0, 10), []);
}

#[test]
fn memory_is_bounded() {
    let mut cache = Cache::new(100 * COST);
    let many: Vec<_> = (0..1000).map(|n| (1, [DATA, ZERO][n % 2])).collect();
    for volume in 0..10 {
        let query = cache.begin_query();
        cache.end_query(query, volume, 0, &extents(&many));
        let kept: usize = cache.maps.values().map(Map::len).sum();
        assert!(kept <= 100, "{kept}");
    }
    assert_eq!(cache.known(9, 0, u64::MAX).len(), 100, "the last is kept");
    let mut none = Cache::new(COST - 1);
    let query = none.begin_query();
    none.end_query(query, 1, 0, &extents(&[(1, ZERO)]));
    assert_eq!(known(&none, 0, 1), []);
    let query = cache.begin_query();
    for at in 0..10_000 {
        let change = cache.begin_change(2 * at * UNIT, 1);
        cache.end_change(change, at % 2 == 0);
    }
    assert!(cache.open.len() <= MAX_APART);
    assert!(cache.queries[&query].len() <= MAX_APART);
}

#[test]
fn extents_at_the_end_of_all_numbers_do_no_harm() {
    let mut cache = Cache::new(1 << 20);
    let change = cache.begin_change(u64::MAX - 1, u64::MAX);
    cache.end_change(change, false);
    let query = cache.begin_query();
    let long = vec![
        Descriptor {
            length: 5 << 32,
            status: ZERO
        };
        3
    ];
    cache.end_query(query, 1, u64::MAX - 10, &long);
    assert!(cache.is_zero(1, u64::MAX - 10, u64::MAX));
    assert!(!cache.known(1, u64::MAX - 10, u64::MAX).is_empty());
    let query = cache.begin_query();
    cache.end_query(query, 1, 0, &long);
    let found = cache.known(1, 1, 3);
    let sum: u64 = found.iter().map(|extent| extent.length).sum();
    assert_eq!(sum, 3 * (5 << 32) - 1);
}

/// Units of the model's disk.
const UNITS: usize = 12;

#[derive(Clone, Debug)]
enum Event {
    Ask,
    /// The answer to the oldest question: the first so many units.
    Answer(usize),
    Begin(usize, bool),
    /// The server carries out the oldest change.
    Apply,
    End,
    Look(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        Just(Event::Ask),
        (1..=UNITS).prop_map(Event::Answer),
        (0..UNITS, any::<bool>()).prop_map(|(at, zero)| Event::Begin(at, zero)),
        Just(Event::Apply),
        Just(Event::End),
        (0..UNITS).prop_map(Event::Look),
    ];
    proptest::collection::vec(event, 1..60)
}

proptest! {
    /// What is known is what the server has, unless a change of it is under way.
    #[test]
    fn what_is_known_is_true(events in events()) {
        let mut cache = Cache::new(1 << 20);
        let mut disk = [ZERO; UNITS];
        let mut asked: Option<(Query, [Allocation; UNITS])> = None;
        let mut changes: Vec<(Change, usize, Allocation, bool)> = Vec::new();
        for event in events {
            match event {
                // The server's answer is that of any moment; the first one is the worst.
                Event::Ask => {
                    if asked.is_none() {
                        asked = Some((cache.begin_query(), disk));
                    }
                }
                Event::Answer(units) => {
                    if let Some((query, seen)) = asked.take() {
                        let all: Vec<_> = seen[..units].iter().map(|s| (1, *s)).collect();
                        cache.end_query(query, 1, 0, &extents(&all));
                    }
                }
                Event::Begin(at, zero) => {
                    let change = cache.begin_change(at as u64 * UNIT + 1, 1);
                    changes.push((change, at, if zero { ZERO } else { DATA }, false));
                }
                Event::Apply => {
                    if let Some(change) = changes.iter_mut().find(|change| !change.3) {
                        change.3 = true;
                        disk[change.1] = change.2;
                    }
                }
                Event::End => {
                    if let Some(place) = changes.iter().position(|change| change.3) {
                        let (change, ..) = changes.remove(place);
                        cache.end_change(change, false);
                    }
                }
                Event::Look(at) => {
                    let found = known(&cache, at as u64, UNITS as u64);
                    let mut place = at;
                    for (units, status) in found {
                        for _ in 0..units {
                            prop_assert_eq!(status, disk[place]);
                            prop_assert!(changes.iter().all(|change| change.1 != place));
                            place += 1;
                        }
                    }
                }
            }
        }
    }
}
