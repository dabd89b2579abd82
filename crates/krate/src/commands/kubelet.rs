//! `krate kubelet`: the kubelet alone, under upstream's flags, for any API server and any container runtime.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use krate_api::boolean;
use krate_kubelet::{Access, Beginning, Config, Configuration, Serving};
use krate_pki::Source;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::address;
use crate::cli::Kubelet;

/// Labels that a kubelet may give to its own node below `kubernetes.io` (the `NodeRestriction` plugin refuses others).
const OWN_LABELS: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

/// Runs the kubelet until it is asked to stop; what runs then goes on running.
///
/// # Errors
/// It is configured in a way that cannot be, or cannot start.
pub async fn run(args: &Kubelet) -> Result<()> {
    crate::log::to_stderr(&args.logs);
    let mut config = configured(args)?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        crate::up::asked_to_stop().await;
        stop.cancel();
    });
    let beginning = Beginning {
        kubeconfig: args.kubeconfig.clone(),
        bootstrap: args.bootstrap_kubeconfig.clone(),
        directory: config.cert_dir.clone(),
        node_name: config.node_name.clone(),
        rotate: config.rotate_certificates,
    };
    let access = tokio::select! {
        access = Access::open(&beginning, &shutdown) => access.context("failed to run Kubelet")?,
        () = shutdown.cancelled() => return Ok(()),
    };
    config.identity.clone_from(&access.identity);
    tokio::select! {
        ended = krate_kubelet::run(access.client.clone(), config, None, shutdown) => {
            ended.context("failed to run Kubelet")
        }
        () = access.lost() => {
            bail!("No valid client certificate is found and the server is responsive, exiting.")
        }
    }
}

/// Defaults, then the file, its drop-ins, and the flags.
fn configured(args: &Kubelet) -> Result<Config> {
    let name = args.hostname_override.clone().unwrap_or_else(address::host_name).to_lowercase();
    let ip = args.node_ip.or_else(address::of_this_machine).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut configuration = Configuration::load(args.config.as_deref(), args.config_dir.as_deref())?;
    configuration.set(flags(args)?);
    let mut config = Config::new(name, ip, &args.root_dir);
    config.cert_dir.clone_from(&args.cert_dir);
    let own = (args.cert_dir.join("kubelet.crt"), args.cert_dir.join("kubelet.key"));
    config.serving = Serving::From(Source::Files { certificate: own.0.clone(), key: own.1.clone() });
    configuration.apply(&mut config)?;
    config.providers = args.providers.load()?;
    for label in args.node_labels.iter().flatten() {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        let reserved =
            key.split('/').next().is_some_and(|p| p.ends_with("kubernetes.io") && key.contains('/'));
        if reserved
            && !OWN_LABELS.iter().any(|own| key.starts_with(own))
            && !key.starts_with("topology.kubernetes.io/")
        {
            bail!("unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: [{key}]");
        }
        config.labels.insert(key.to_owned(), value.to_owned());
    }
    if matches!(&config.serving, Serving::From(Source::Files { certificate, .. }) if *certificate == own.0) {
        self_signed(&own, &config)?;
    }
    Ok(config)
}

/// The flags that are fields of the configuration too.
fn flags(args: &Kubelet) -> Result<Value> {
    let mut set = Map::new();
    let mut put = |path: &[&str], value: Option<Value>| {
        let Some(value) = value else { return };
        let (last, parents) = path.split_last().unwrap_or((&"", &[]));
        let mut at = &mut set;
        for parent in parents {
            let entry = at.entry(*parent).or_insert_with(|| json!({}));
            let Value::Object(inner) = entry else { return };
            at = inner;
        }
        at.insert((*last).to_owned(), value);
    };
    let path = |p: &Option<std::path::PathBuf>| p.as_ref().map(|p| json!(p.display().to_string()));
    put(&["address"], args.address.map(|a| json!(a.to_string())));
    put(&["port"], args.port.map(Value::from));
    put(&["healthzPort"], args.healthz_port.map(Value::from));
    put(&["healthzBindAddress"], args.healthz_bind_address.map(|a| json!(a.to_string())));
    put(&["tlsCertFile"], path(&args.tls_cert_file));
    put(&["tlsPrivateKeyFile"], path(&args.tls_private_key_file));
    put(&["rotateCertificates"], args.rotate_certificates.map(Value::from));
    put(&["serverTLSBootstrap"], args.rotate_server_certificates.map(Value::from));
    put(&["authentication", "x509", "clientCAFile"], path(&args.client_ca_file));
    put(&["authentication", "anonymous", "enabled"], args.anonymous_auth.map(Value::from));
    put(&["authentication", "webhook", "enabled"], args.authentication_token_webhook.map(Value::from));
    put(&["authorization", "mode"], args.authorization_mode.clone().map(Value::from));
    put(&["clusterDNS"], args.cluster_dns.as_ref().map(|all| json!(all)));
    put(&["clusterDomain"], args.cluster_domain.clone().map(Value::from));
    put(&["resolvConf"], path(&args.resolv_conf));
    put(&["cgroupRoot"], args.cgroup_root.clone().map(Value::from));
    put(&["maxPods"], args.max_pods.map(Value::from));
    put(&["podLogsDir"], path(&args.pod_logs_dir));
    put(&["containerRuntimeEndpoint"], args.container_runtime_endpoint.clone().map(Value::from));
    put(&["failSwapOn"], args.fail_swap_on.map(Value::from));
    put(&["staticPodPath"], path(&args.pod_manifest_path));
    put(&["staticPodURL"], args.manifest_url.clone().map(Value::from));
    put(&["fileCheckFrequency"], args.file_check_frequency.clone().map(Value::from));
    put(&["httpCheckFrequency"], args.http_check_frequency.clone().map(Value::from));
    put(&["featureGates"], args.feature_gates.as_deref().map(gates).transpose()?.map(Value::from));
    let taints: Option<Vec<Value>> =
        args.register_with_taints.as_ref().map(|all| all.iter().map(|t| taint(t)).collect()).transpose()?;
    put(&["registerWithTaints"], taints.map(Value::from));
    Ok(Value::Object(set))
}

/// `NAME=true,OTHER=false`
fn gates(pairs: &[String]) -> Result<Map<String, Value>> {
    let pairs = pairs.iter().filter(|pair| !pair.is_empty());
    let read = pairs.map(|pair| {
        let said = || format!("invalid argument {pair:?} for \"--feature-gates\" flag");
        let (name, value) =
            pair.split_once('=').context("malformed pair, expect string=bool").with_context(said)?;
        let (name, value) = (name.trim(), value.trim());
        let on = boolean::parse(value).with_context(|| format!("invalid value of {name}: {value}"));
        Ok((name.to_owned(), Value::from(on.with_context(said)?)))
    });
    read.collect()
}

/// `key=value:effect`
fn taint(text: &str) -> Result<Value> {
    let (key, effect) = text.rsplit_once(':').with_context(|| format!("invalid taint spec: {text}"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        bail!("invalid taint effect: {effect}, unsupported taint effect");
    }
    let (key, value) = key.split_once('=').unwrap_or((key, ""));
    Ok(json!({"key": key, "value": value, "effect": effect}))
}

/// Makes the certificate of a kubelet that was given none, if it is not there.
fn self_signed((certificate, key): &(PathBuf, PathBuf), config: &Config) -> Result<()> {
    if certificate.exists() && key.exists() {
        return Ok(());
    }
    let hosts = [config.node_name.clone(), config.node_ip.to_string(), "localhost".to_owned()];
    let pair = rcgen::KeyPair::generate()?;
    let made = rcgen::CertificateParams::new(hosts)?.self_signed(&pair)?;
    let directory = &config.cert_dir;
    let said = || format!("unable to write the kubelet's certificate in {}", directory.display());
    fs::create_dir_all(directory).with_context(said)?;
    krate_pki::write(certificate, made.pem().as_bytes(), 0o644).with_context(said)?;
    krate_pki::write(key, pair.serialize_pem().as_bytes(), 0o600).with_context(said)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn kubelet(flags: &[&str]) -> Kubelet {
        match Cli::parse_from(
            [&["krate", "kubelet", "--kubeconfig=/etc/krate/kubelet.kubeconfig"], flags].concat(),
        )
        .command
        {
            Command::Kubelet(kubelet) => *kubelet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_go_before_the_file() {
        let directory = std::env::temp_dir().join(format!("krate-kubelet-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("made");
        let file = directory.join("config.yaml");
        let text =
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 7\nport: 7\n";
        fs::write(&file, text).expect("written");
        let config = configured(&kubelet(&[
            "--config",
            &file.to_string_lossy(),
            "--cert-dir",
            &directory.to_string_lossy(),
            "--hostname-override=Node-1",
            "--node-ip=192.0.2.7",
            "--port=8",
            "--anonymous-auth=true",
            "--cluster-dns=10.0.0.10,10.0.0.11",
            "--register-with-taints=a=b:NoSchedule,c:NoExecute",
            "--node-labels=x=y,node.kubernetes.io/z=1",
            "--feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=1",
            "--feature-gates=AllAlpha=false",
        ]))
        .expect("sound");
        assert!(config.trust_bundles && !config.pod_certificates);
        assert_eq!((config.node_name.as_str(), config.max_pods, config.port), ("node-1", 7, 8));
        assert_eq!((config.cluster_dns.len(), config.taints.len(), config.labels.len()), (2, 2, 2));
        assert!(config.anonymous_auth && !config.rotate_certificates);
        assert!(directory.join("kubelet.crt").exists() && directory.join("kubelet.key").exists());
        // One that is asked for is not made.
        let asked = configured(&kubelet(&[
            "--cert-dir=/nowhere",
            "--rotate-server-certificates",
            "--rotate-certificates=true",
        ]));
        let asked = asked.expect("sound");
        assert!(asked.rotate_certificates && matches!(asked.serving, Serving::Requested { .. }));
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flags, said) in [
            (["--node-labels=kubernetes.io/x=y"], "unknown 'kubernetes.io' or 'k8s.io' labels"),
            (["--register-with-taints=a=b:Never"], "invalid taint effect: Never"),
            (["--feature-gates=AllAlpha"], "malformed pair, expect string=bool"),
            (["--feature-gates=AllAlpha=maybe"], "invalid value of AllAlpha: maybe: strconv.ParseBool"),
            (["--feature-gates=ClusterTrustBundleProjection=true"], "[ClusterTrustBundle]"),
            (["--config=/nowhere"], "failed to read kubelet config file"),
        ] {
            let error = configured(&kubelet(&flags)).expect_err("refused");
            let error = format!("{error:#}");
            assert!(error.contains(said), "{error}");
        }
    }
}
