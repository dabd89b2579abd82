//! The project's own chores: `cargo xtask up`, `cargo xtask test`.

mod codegen;
mod kubectl;
mod map;
mod packages;
mod test;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  up [ARGS…]        install what is missing, build the release binary, run `krate up ARGS…`
  test              all that CI checks: format, clippy, unit tests, the end-to-end test with a real kubectl
  map               mend the lines that ARCHITECTURE.md names
  codegen FACTS     make the schema table of crates/api from a folder of openapi-v2.json and proto-fields.json
  kubectl           fetch the kubectl that the tests use; print where it is";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let done = match command.as_str() {
        "up" => up(&rest),
        "test" => test::run_tests(),
        "map" => map::update(),
        "codegen" => match rest.first() {
            Some(facts) => {
                codegen::write_schema(Path::new(facts), &root().join("crates/api/src/schema/table.txt"))
            }
            None => Err(anyhow::anyhow!("codegen: where are the facts?\n{USAGE}")),
        },
        "kubectl" => kubectl::fetch().map(|path| println!("{}", path.display())),
        "" | "help" | "-h" | "--help" => {
            println!("{USAGE}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("there is no command {other}\n{USAGE}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The checkout that this binary was built from.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

const OF_A_PACKAGE: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];

/// Runs a command in the checkout, shown before it runs.
fn run(command: &mut Command) -> Result<()> {
    let shown: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    let shown = shown.join(" ");
    eprintln!("\n$ {shown}");
    let status = command.current_dir(root()).status().with_context(|| format!("starting `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    // What says of which package this program is: build scripts that look at it would run again, and all that stands on
    // them be built anew.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| OF_A_PACKAGE.iter().any(|own| name.starts_with(own))) {
            command.env_remove(name);
        }
    }
    command
}

fn up(args: &[String]) -> Result<()> {
    packages::install(packages::BUILD)?;
    run(&mut cargo(&["build", "--release", "--package", "krate"]))?;
    run(Command::new(root().join("target/release/krate")).arg("up").args(args))
}
