//! What fuzzing has found stays found: every target is given its corpus, the published samples, and changes of both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use krate_apiserver::fuzzing::{TARGETS, Target};
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

/// One fully filled object of each kind, in JSON, YAML and protobuf.
const SAMPLES: &str = "/work/shared/kubernetes-v1.36/testdata";
/// What any input may take, on a machine that is busy, without optimization.
const LONGEST: Duration = Duration::from_secs(20);
/// The largest input, in bytes.
const LARGEST: usize = 64 * 1024;
/// How long inputs are changed at most, for each target; `KRATE_FUZZ_SECONDS` names another, `KRATE_FUZZ_TARGET` one target, and
/// `KRATE_FUZZ_LAST` a file that has each input while it is tried.
const CHANGING: Duration = Duration::from_millis(300);
/// How many changes of a target's inputs are tried where no time is named: always the same ones.
const CHANGES: usize = 10_000;

/// How long the inputs are that are long in one way, in bytes.
const LENGTH: usize = 300 * 1024;
/// Inputs that are long in one way: a beginning, what comes again and again, a number in the place of its `#`, and an end.
/// What looks for each of its parts among all of them is not done with one of these in an hour.
const LONG: &[(&str, [&str; 3])] = &[
    ("json", ["", "[", ""]),
    ("json", ["{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\"", ",\"a#\":1", "}"]),
    ("json", ["{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"data\":{\"b\":\"\"", ",\"a\":\"1\"", "}}"]),
    (
        "json",
        [
            "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"a\"},\"spec\":{\"containers\":[",
            "{\"name\":\"c#\",\"image\":\"i\",\"ports\":[{\"containerPort\":#}]},",
            "{}]}}",
        ],
    ),
    ("yaml", ["", "[", ""]),
    ("yaml", ["", "- ", ""]),
    ("yaml", ["", "a: 1\n", ""]),
    ("yaml", ["- &a 1\n", "- *a\n", ""]),
    ("yaml", ["a: &a [x,x,x,x,x]\n", "b#: &b [*a,*a,*a,*a]\n", ""]),
    ("protobuf", ["k8s\0", "\n\u{2}", ""]),
    ("json_patch", ["[", "{\"op\":\"copy\",\"from\":\"/metadata\",\"path\":\"/metadata/a#\"},", "{}]"]),
    ("merge_patch", ["{\"metadata\":{\"labels\":{", "\"a#\":\"b\",", "\"c\":null}}}"]),
    (
        "strategic_patch",
        [
            "{\"spec\":{\"template\":{\"spec\":{\"containers\":[",
            "{\"name\":\"c#\"},",
            "{\"name\":\"d\",\"$patch\":\"delete\"}]}}}}",
        ],
    ),
    ("strategic_patch", ["{\"metadata\":{\"finalizers\":[", "\"a/#\",", "\"b\"]}}"]),
    ("strategic_patch", ["{\"metadata\":{\"$deleteFromPrimitiveList/finalizers\":[", "\"a/#\",", "\"b\"]}}"]),
    (
        "apply",
        [
            "{\"apiVersion\":\"apps/v1\",\"kind\":\"Deployment\",\"metadata\":{\"name\":\"a\",\"finalizers\":[",
            "\"a/#\",",
            "\"b/c\"]}}",
        ],
    ),
    ("label_selector", ["", "a#,", "b"]),
    ("label_selector", ["a in (", "b#,", "c)"]),
    ("field_selector", ["", "a#=b,", "c=d"]),
    ("cel", ["[", "1,", "1]"]),
    ("cel", ["", "!", "true"]),
    ("cel", ["object", ".a", ""]),
    ("continue_token", ["", "a", ""]),
    ("jwt", ["", "a.", ""]),
    ("quantity", ["0.", "0", "1"]),
    ("duration", ["", "1h", ""]),
    ("request", ["/api/v1/pods?", "a#=b&", ""]),
    ("request", ["/api/v1/pods\n", "a/b;q=1,", "*/*"]),
];

/// One of those inputs.
fn long([begin, part, end]: [&str; 3]) -> Vec<u8> {
    let mut out = begin.to_owned();
    for i in 1.. {
        out.push_str(&part.replace('#', &i.to_string()));
        if out.len() > LENGTH {
            break;
        }
    }
    out.push_str(end);
    out.into_bytes()
}

fn files(directory: &Path, of: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.path()).collect();
    names.sort();
    let wanted = names.iter().filter(|path| path.file_name().is_some_and(|name| of(&name.to_string_lossy())));
    wanted.map(|path| std::fs::read(path).expect("it can be read")).collect()
}

/// The corpus of a target, and the samples that are of its form.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut all = files(&corpus, |_| true);
    assert!(!all.is_empty(), "{} is empty", corpus.display());
    let ends: &[&str] = match target {
        "json" => &[".json"],
        "yaml" => &[".yaml"],
        "protobuf" => &[".pb"],
        "merge_patch" | "strategic_patch" => &["apps.v1.Deployment.json"],
        "apply" => &["apps.v1.Deployment.yaml"],
        _ => &[],
    };
    if Path::new(SAMPLES).is_dir() {
        all.extend(files(Path::new(SAMPLES), |name| ends.iter().any(|end| name.ends_with(end))));
    } else if !ends.is_empty() {
        eprintln!("SKIPPED in part: {SAMPLES} is not there");
    }
    all
}

/// Gives an input to a target; what is wrong is told with the input.
fn run((name, target): Target, input: &[u8]) -> Result<(), String> {
    let last = std::env::var_os("KRATE_FUZZ_LAST");
    if let Some(last) = &last {
        // What ends the whole process leaves its input behind.
        std::fs::write(last, input).expect("written");
    }
    let since = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| target(input)));
    let took = since.elapsed();
    if done.is_err() || took > LONGEST {
        let file = std::env::temp_dir().join(format!("krate-fuzz-{name}-{}", std::process::id()));
        std::fs::write(&file, input).expect("written");
        let what = if done.is_err() { "panics" } else { "takes long" };
        let input = String::from_utf8_lossy(input);
        return Err(format!("{name} {what} ({took:?}): {} has {input:?}", file.display()));
    }
    Ok(())
}

/// Gives a target its seeds, and changes of them for a while. How many changes there were.
fn tried(
    target: Target,
    seeds: &[Vec<u8>],
    changing: Duration,
    most: usize,
    random: &mut SmallRng,
) -> Result<usize, String> {
    for seed in seeds {
        run(target, seed)?;
    }
    let (until, mut count) = (Instant::now() + changing, 0);
    while count < most && Instant::now() < until {
        run(target, &changed(seeds, random))?;
        count += 1;
    }
    Ok(count)
}

/// An input that differs from a seed a little, or is made of two.
fn changed(seeds: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
    const TOKENS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "'",
        "null",
        "true",
        "-1",
        "9223372036854775808",
        "1e999",
        "\\u0000",
        "\\ud800",
        "$patch",
        "$setElementOrder/containers",
        "&a",
        "*a",
        "- ",
        "\n",
        "\t",
        "(",
        ")",
        ".",
        "..",
        "!",
        "in",
        "notin",
        "=",
        "==",
        "!=",
        "%",
        "\u{0}",
        "\u{fffd}",
        "Ki",
        "E",
        "~1",
        "/-",
        "/0",
    ];
    let mut out = seeds.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=out.len());
        match random.random_range(0..7) {
            0 if at < out.len() => out[at] ^= 1 << random.random_range(0..8),
            1 if at < out.len() => out[at] = random.random(),
            2 => out.truncate(at),
            3 => {
                let token = TOKENS.choose(random).copied().unwrap_or_default();
                out.splice(at..at, token.bytes());
            }
            4 => {
                let end = (at + random.random_range(0..64)).min(out.len());
                out.drain(at..end);
            }
            5 => {
                let other = seeds.choose(random).map(Vec::as_slice).unwrap_or_default();
                let from = random.random_range(0..=other.len());
                let end = (from + random.random_range(0..256)).min(other.len());
                out.splice(at..at, other[from..end].iter().copied());
            }
            _ => {
                let end = (at + random.random_range(0..64)).min(out.len());
                let part = out[at..end].to_vec();
                for _ in 0..random.random_range(1..20) {
                    out.splice(at..at, part.iter().copied());
                }
            }
        }
        out.truncate(LARGEST);
    }
    out
}

#[test]
fn every_target_is_one_for_a_fuzzer_too() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).expect("it is there");
    let bins: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .skip(1)
        .collect();
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(bins, targets);
}

#[test]
fn nothing_that_is_sent_does_harm() {
    let named = std::env::var("KRATE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let changing = named.map_or(CHANGING, Duration::from_secs);
    let only = std::env::var("KRATE_FUZZ_TARGET").ok();
    let (seed, most) = if named.is_some() { (rand::random(), usize::MAX) } else { (7, CHANGES) };
    let mut found = Vec::new();
    for target in TARGETS.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name)) {
        let seeds = seeds(target.0);
        match tried(*target, &seeds, changing, most, &mut SmallRng::seed_from_u64(seed)) {
            Ok(count) => eprintln!("{}: {} seeds, {count} changes", target.0, seeds.len()),
            Err(why) => found.push(why),
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_is_long_takes_no_longer_than_it_is() {
    let mut found = Vec::new();
    for (name, shape) in LONG {
        let target = TARGETS.iter().find(|(known, _)| known == name).expect("it is a target");
        let since = Instant::now();
        found.extend(run(*target, &long(*shape)).err().map(|why| why.chars().take(200).collect::<String>()));
        eprintln!("{name} {:?}: {:?}", shape[1], since.elapsed());
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
