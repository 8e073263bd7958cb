// SPDX-License-Identifier: BSD-3-Clause
//! `dynamic-export=true`: clients choose among the server's exports. Without it there is one export.

mod common;

use std::path::Path;
use std::thread;

use serde_json::Value;

use common::clients::{canonical_name, nbdsh, nbdsh_unconnected, program};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::pair::Pair;
use common::refusal::refusal;
use common::{need, need_all};

const DYNAMIC: &[&str] = &["dynamic-export=true"];

/// A server with exports `alpha` (1 MiB) and `beta` (2 MiB) in a folder, and descriptions for both.
fn two_exports(directory: &Path) -> Nbdkit {
    let list = "list_exports=echo INTERLEAVED; \
                echo alpha; echo the first; echo beta; echo the second";
    let open = "open=case \"$3\" in alpha|beta) echo \"$3\";; '') echo alpha;; \
                *) echo \"ENOENT no $3\" >&2; exit 1;; esac";
    let size = "get_size=case \"$2\" in alpha) echo 1M;; beta) echo 2M;; esac";
    let describe = "export_description=echo this is \"$2\"";
    let default = "default_export=echo alpha";
    Nbdkit::start(
        directory,
        &[
            "eval",
            list,
            open,
            size,
            describe,
            default,
            "pread=head -c $3 /dev/zero",
        ],
    )
}

/// Names and descriptions as a client sees them.
fn list(front: &Nbdkit) -> Vec<(String, String)> {
    let script = format!(
        "
import json
h.set_opt_mode(True)
h.connect_unix('{}')
found = []
h.opt_list(lambda name, description: found.append((name, description)))
h.opt_abort()
print(json.dumps(found))
",
        front.socket().display()
    );
    serde_json::from_str(&nbdsh_unconnected(&script)).expect("JSON")
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(name, description)| ((*name).to_owned(), (*description).to_owned()))
        .collect()
}

#[test]
fn server_s_list_is_passed_on_with_descriptions() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, DYNAMIC);
    assert_eq!(
        list(&pair.front),
        pairs(&[("alpha", "the first"), ("beta", "the second")])
    );
}

#[test]
fn each_client_gets_the_export_that_it_asks_for() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, DYNAMIC);
    let size = |name: &str| {
        Front::open_as(pair.front.socket(), name, false)
            .expect("opens")
            .export()
            .size
    };
    assert_eq!(size("alpha"), 1 << 20);
    assert_eq!(size("beta"), 2 << 20);
}

#[test]
fn two_exports_at_the_same_time() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, DYNAMIC);
    let mut alpha = Front::open_as(pair.front.socket(), "alpha", false).expect("opens");
    let mut beta = Front::open_as(pair.front.socket(), "beta", false).expect("opens");
    assert_eq!(alpha.read((1 << 20) - 512, 512), Ok(vec![0; 512]));
    assert_eq!(beta.read((2 << 20) - 512, 512), Ok(vec![0; 512]));
}

#[test]
fn description_is_that_of_the_export() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, DYNAMIC);
    let beta = Front::open_as(pair.front.socket(), "beta", false).expect("opens");
    assert_eq!(beta.export().description.as_deref(), Some("this is beta"));
}

#[test]
fn unknown_name_is_refused_and_the_reason_told() {
    if !need("nbdkit") {
        return;
    }
    let mut pair = Pair::with(two_exports, DYNAMIC);
    assert!(Front::open_as(pair.front.socket(), "gamma", false).is_err());
    let explanation = pair.front.explanation();
    assert!(explanation.contains("gamma"), "{explanation}");
    assert!(pair.front.alive());
}

#[test]
fn empty_name_is_the_servers_default() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, DYNAMIC);
    assert_eq!(
        Front::open(pair.front.socket())
            .expect("opens")
            .export()
            .size,
        1 << 20
    );
}

#[test]
fn default_export_has_the_servers_name_for_it() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, DYNAMIC);
    assert_eq!(canonical_name(pair.front.socket()), "alpha");
}

#[test]
fn names_with_spaces_slashes_and_letters_of_all_scripts() {
    if !need("nbdkit") {
        return;
    }
    // This server's disk holds the name that it was asked for.
    let pair = Pair::new(&["info"], DYNAMIC);
    for name in ["a b", "/dev/disk/", "ünïcode", "%41", "x?y=z"] {
        let mut client = Front::open_as(pair.front.socket(), name, false).expect("opens");
        let length = u32::try_from(name.len()).expect("short");
        assert_eq!(
            client.read(0, length),
            Ok(name.as_bytes().to_vec()),
            "{name}"
        );
    }
}

#[test]
fn name_of_the_longest_kind_is_passed_on() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(&["info"], DYNAMIC);
    let name = "x".repeat(4096);
    let mut client = Front::open_as(pair.front.socket(), &name, false).expect("opens");
    assert_eq!(client.read(0, 4096), Ok(name.into_bytes()));
}

#[test]
fn nbdinfo_lists_and_opens_all() {
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let pair = Pair::with(two_exports, DYNAMIC);
    let text = program("nbdinfo", &["--list", "--json", &pair.front.uri()]);
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let sizes: Vec<_> = all["exports"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|export| {
            (
                export["export-name"].as_str(),
                export["export-size"].as_u64(),
            )
        })
        .collect();
    assert_eq!(
        sizes,
        [
            (Some("alpha"), Some(1 << 20)),
            (Some("beta"), Some(2 << 20))
        ]
    );
}

#[test]
fn oldstyle_server_has_one_export_without_a_name() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(&["-o", "memory", "1M"], DYNAMIC);
    assert_eq!(list(&pair.front), pairs(&[("", "")]));
    assert_eq!(canonical_name(pair.front.socket()), "");
    assert_eq!(
        Front::open(pair.front.socket())
            .expect("opens")
            .export()
            .size,
        1 << 20
    );
}

#[test]
fn server_that_is_not_fixed_newstyle_has_a_default_export() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(&["--mask-handshake=0", "memory", "1M"], DYNAMIC);
    assert_eq!(list(&pair.front), pairs(&[("", "")]));
    assert_eq!(
        Front::open(pair.front.socket())
            .expect("opens")
            .export()
            .size,
        1 << 20
    );
}

#[test]
fn list_of_a_chain_of_forwarders_is_that_of_the_last() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = two_exports(directory.path());
    let near = forward(directory.path(), server.socket(), DYNAMIC);
    let far = forward(directory.path(), near.socket(), DYNAMIC);
    assert_eq!(
        list(&far),
        pairs(&[("alpha", "the first"), ("beta", "the second")])
    );
    assert_eq!(canonical_name(far.socket()), "alpha");
}

// Without dynamic-export.

#[test]
fn configured_name_is_the_only_one_listed() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, &["export=beta"]);
    let names: Vec<_> = list(&pair.front)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["beta"]);
}

#[test]
fn configured_name_is_the_canonical_one() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, &["export=beta"]);
    assert_eq!(canonical_name(pair.front.socket()), "beta");
}

#[test]
fn name_in_a_uri_is_the_canonical_one() {
    if !need("nbdkit") {
        return;
    }
    // The plugin in C advertises the empty name here.
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = two_exports(directory.path());
    let uri = server.uri_export("beta");
    let front = common::nbdkit::through(directory.path(), &[&uri]);
    assert_eq!(canonical_name(front.socket()), "beta");
    assert_eq!(
        nbdsh(&front.uri(), "print(h.get_size())").trim_end(),
        "2097152"
    );
}

#[test]
fn listing_without_it_needs_no_server() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let nobody = directory.path().join("nobody.sock");
    let front = forward(directory.path(), &nobody, &["export=beta"]);
    let names: Vec<_> = list(&front).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["beta"]);
}

#[test]
fn any_name_leads_to_the_configured_export() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, &["export=beta"]);
    for name in ["", "beta", "alpha", "gamma"] {
        let client = Front::open_as(pair.front.socket(), name, false).expect("opens");
        assert_eq!(client.export().size, 2 << 20, "{name:?}");
    }
}

#[test]
fn lists_are_asked_for_at_the_same_time() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::with(two_exports, DYNAMIC);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(
                    list(&pair.front),
                    pairs(&[("alpha", "the first"), ("beta", "the second")])
                );
            });
        }
    });
}

// What cannot be meant together.

#[test]
fn export_name_and_dynamic_export_conflict() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(
        refusal(&["socket=/nowhere", "export=disk", "dynamic-export=true"]),
        "cannot mix 'dynamic-export' with explicit export name"
    );
}

#[test]
fn shared_connections_and_dynamic_export_conflict() {
    if !need("nbdkit") {
        return;
    }
    for other in ["shared=true", "command=true", "socket-fd=0"] {
        let place = if other.starts_with("shared") {
            "socket=/nowhere"
        } else {
            "retry=0"
        };
        assert_eq!(
            refusal(&[place, other, "dynamic-export=true"]),
            "cannot use 'dynamic-export' with shared connection",
            "{other}"
        );
    }
}
