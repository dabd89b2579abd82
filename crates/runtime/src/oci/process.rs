//! What runs in a container: arguments, environment, directory.

use k8s_cri::v1::{ContainerConfig, KeyValue};

use crate::image::store::RunConfig;

/// Where programs are looked for when nobody says (containerd's default).
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no command specified")]
pub struct NoCommand;

/// The pod's command and arguments over the image's. A command of the pod's own lets go of the image's arguments.
pub fn args(config: &ContainerConfig, image: &RunConfig) -> Result<Vec<String>, NoCommand> {
    let (mut command, mut args) = (config.command.clone(), config.args.clone());
    if command.is_empty() {
        command.clone_from(&image.entrypoint);
        if args.is_empty() {
            args.clone_from(&image.cmd);
        }
    }
    command.append(&mut args);
    if command.is_empty() { Err(NoCommand) } else { Ok(command) }
}

/// The environment: the image's, the host name, and over both what the pod says.
pub fn env(asked: &[KeyValue], image: &RunConfig, hostname: &str, tty: bool) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned()];
    if tty {
        env.push("TERM=xterm".into());
    }
    if !hostname.is_empty() {
        set(&mut env, format!("HOSTNAME={hostname}"));
    }
    for pair in &image.env {
        set(&mut env, pair.clone());
    }
    for pair in asked {
        set(&mut env, format!("{}={}", pair.key, pair.value));
    }
    env
}

fn set(env: &mut Vec<String>, pair: String) {
    let name = pair.split('=').next().unwrap_or_default();
    match env.iter_mut().find(|known| known.split('=').next() == Some(name)) {
        Some(known) => *known = pair,
        None => env.push(pair),
    }
}

/// Where it starts.
pub fn directory(config: &ContainerConfig, image: &RunConfig) -> String {
    [&config.working_dir, &image.working_dir]
        .into_iter()
        .find(|directory| !directory.is_empty())
        .map_or_else(|| "/".to_owned(), Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn commands_combine_as_upstream_says() {
        // The table of Kubernetes's documentation on commands and arguments.
        for (command, args_, expected) in [
            (&[][..], &[][..], &["/ep", "foo"][..]),
            (&["/cmd"], &[], &["/cmd"]),
            (&[], &["zoo"], &["/ep", "zoo"]),
            (&["/cmd"], &["zoo"], &["/cmd", "zoo"]),
        ] {
            let config =
                ContainerConfig { command: strings(command), args: strings(args_), ..Default::default() };
            let image =
                RunConfig { entrypoint: strings(&["/ep"]), cmd: strings(&["foo"]), ..Default::default() };
            assert_eq!(args(&config, &image).unwrap(), strings(expected));
        }
        assert_eq!(args(&ContainerConfig::default(), &RunConfig::default()), Err(NoCommand));
    }

    #[test]
    fn the_pods_environment_wins() {
        let image = RunConfig { env: strings(&["PATH=/image", "A=1"]), ..Default::default() };
        let asked = [KeyValue { key: "A".into(), value: "2=3".into() }];
        assert_eq!(env(&asked, &image, "pod", false), strings(&["PATH=/image", "HOSTNAME=pod", "A=2=3"]));
    }
}
