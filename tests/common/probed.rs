// SPDX-License-Identifier: BSD-3-Clause
//! What `probe=` prints of a server, taken apart.

use std::path::Path;

use serde_json::Value;

use super::clients::{program, text};
use super::nbdkit::printed;

/// Where a server is, as a parameter.
pub fn socket(path: &Path) -> String {
    format!("socket={}", text(path))
}

/// What is printed for people; it must have worked, without a word beside it.
pub fn told(args: &[&str]) -> String {
    let (status, stdout, stderr) = printed(&[args, &["probe=1"]].concat());
    assert_eq!((status, &*stderr), (Some(0), ""), "{args:?}: {stdout}");
    stdout
}

/// The one line for programs, as two parsers of JSON understand it.
pub fn parsed(stdout: &str) -> Value {
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let same = "import json, sys; print(json.dumps(json.loads(sys.argv[1])))";
    let theirs: Value = serde_json::from_str(&program("python3", &["-c", same, stdout]))
        .expect("what Python writes is JSON");
    let ours: Value = serde_json::from_str(stdout).expect("JSON");
    assert_eq!(ours, theirs);
    assert_eq!(ours["probe_format"], 1);
    ours
}

/// What is printed for programs of the one server there is.
pub fn report(args: &[&str]) -> Value {
    let (status, stdout, stderr) = printed(&[args, &["probe=json"]].concat());
    assert_eq!((status, &*stderr), (Some(0), ""), "{args:?}: {stdout}");
    let all = parsed(&stdout);
    let servers = all["servers"].as_array().expect("a list");
    assert_eq!(servers.len(), 1);
    servers[0].clone()
}

/// Option by option, as "answer" or "answer reply".
pub fn answer(report: &Value, option: &str) -> String {
    let options = report["options"].as_array().expect("a list");
    let said = options.iter().find(|said| said["option"] == option);
    let said = said.unwrap_or_else(|| panic!("{option} is not told of"));
    let word = said["answer"].as_str().expect("a word");
    match said["reply"].as_str() {
        Some(reply) => format!("{word} {reply}"),
        None => word.to_owned(),
    }
}

/// `parameter=value` of all that is suggested.
pub fn suggested(report: &Value) -> Vec<String> {
    let all = report["suggestions"].as_array().expect("a list");
    let word = |advice: &Value, key: &str| advice[key].as_str().expect("a text").to_owned();
    all.iter()
        .map(|advice| format!("{}={}", word(advice, "parameter"), word(advice, "value")))
        .collect()
}
