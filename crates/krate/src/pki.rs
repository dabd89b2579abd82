//! The cluster's keys and certificates: one authority, made once, and what it signs. Serving certificates are signed anew
//! at each start, since the addresses of a machine change, and all are signed anew before they end; all keys are P-256.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use krate_pki::{Current, Pair, Renewal};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// As kubeadm: ten years for the authority, one for what it signs.
const CA_LIFE: Duration = Duration::days(3650);
const LEAF_LIFE: Duration = Duration::days(365);
/// A client certificate that ends earlier than this is signed anew at the next start.
const RENEW_BEFORE: std::time::Duration = std::time::Duration::from_hours(90 * 24);
/// When a renewal that failed is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_mins(10);
/// Between two renewals, however short the life of a certificate is.
const LEAST: std::time::Duration = std::time::Duration::from_secs(1);

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// Whether what is there and lasts is good enough, or another is to be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Lasting,
    New,
}

/// The authority of a cluster, in the `pki` folder of its data directory.
pub struct Authority {
    dir: PathBuf,
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
    /// How long what it signs lasts.
    life: Duration,
}

impl Authority {
    /// Opens the cluster's authority in `dir`, making it if it is not there.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::named(dir, "kubernetes")
    }

    /// Opens the authority of this name in `dir`, making it if it is not there.
    pub fn named(dir: &Path, common_name: &str) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let (cert_file, key_file) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !cert_file.exists() {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name = name(common_name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::CrlSign,
            ];
            live(&mut params, CA_LIFE);
            let certificate = params.self_signed(&key)?;
            // The key first: a certificate in place means that both are.
            write_private(&key_file, key.serialize_pem().as_bytes())?;
            write_atomically(&cert_file, certificate.pem().as_bytes(), 0o644)?;
        }
        let certificate = read(&cert_file)?;
        let key = read(&key_file)?;
        let pair = KeyPair::from_pem(&key).context("reading the authority's key")?;
        let issuer =
            Issuer::from_ca_cert_pem(&certificate, pair).context("reading the authority's certificate")?;
        Ok(Authority { dir: dir.to_owned(), certificate, key, issuer, life: LEAF_LIFE })
    }

    /// The same authority as the controller that signs requests has it.
    pub fn signing(&self) -> Result<krate_controllers::Authority> {
        Ok(krate_controllers::Authority::from_pem(&self.certificate, &self.key)?)
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A fresh serving certificate for these names and addresses.
    pub fn serving(&self, common_name: &str, organization: &[&str], hosts: &[String]) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name, organization);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = hosts
            .iter()
            .map(|host| match host.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => Ok(SanType::DnsName(host.as_str().try_into()?)),
            })
            .collect::<Result<_, rcgen::Error>>()
            .context("a host name that cannot stand in a certificate")?;
        self.sign(params)
    }

    /// A client certificate, kept as `FILE.crt` and `FILE.key`, signed anew when its end is near.
    pub fn client(&self, file: &str, user: &str, groups: &[&str], wanted: Wanted) -> Result<Identity> {
        let cert_file = self.dir.join(format!("{file}.crt"));
        let key_file = self.dir.join(format!("{file}.key"));
        if wanted == Wanted::Lasting
            && let (Ok(certificate), Ok(key)) =
                (fs::read_to_string(&cert_file), fs::read_to_string(&key_file))
        {
            let kept = Identity { certificate, key };
            if lasts(&kept, RENEW_BEFORE) {
                return Ok(kept);
            }
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let identity = self.sign(params)?;
        write_private(&key_file, identity.key.as_bytes())?;
        write_atomically(&cert_file, identity.certificate.as_bytes(), 0o644)?;
        Ok(identity)
    }

    /// The key that signs ServiceAccount tokens, PEM, made if it is not there.
    pub fn service_account_key(&self) -> Result<String> {
        let file = self.dir.join("sa.key");
        if !file.exists() {
            write_private(&file, KeyPair::generate()?.serialize_pem().as_bytes())?;
        }
        read(&file)
    }

    /// What `make` makes of this authority, made anew before it ends, for as long as the process runs.
    pub fn kept(
        self: &Arc<Self>,
        make: impl Fn(&Authority, Wanted) -> Result<Identity> + Send + Sync + 'static,
    ) -> Result<Current> {
        let pair = |made: Identity| Ok::<_, anyhow::Error>(Pair::from_pem(&made.certificate, &made.key)?);
        let first = pair(make(self, Wanted::Lasting)?)?;
        let (mut due, make) = (first.renewal(), Arc::new(make));
        let (renewal, current) = Renewal::new(Some(first));
        let authority = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                krate_pki::until(due).await;
                let (authority, make) = (Arc::clone(&authority), Arc::clone(&make));
                let made = tokio::task::spawn_blocking(move || pair(make(&authority, Wanted::New)?)).await;
                match made.map_err(anyhow::Error::from).flatten() {
                    Ok(pair) => {
                        tracing::info!(
                            user = pair.common_name,
                            "a certificate of the cluster has been renewed"
                        );
                        due = pair.renewal().max(SystemTime::now() + LEAST);
                        renewal.set(pair);
                    }
                    Err(error) => {
                        tracing::error!(
                            error = format!("{error:#}"),
                            "a certificate of the cluster cannot be renewed"
                        );
                        due = SystemTime::now() + AGAIN;
                    }
                }
            }
        });
        Ok(current)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        live(&mut params, self.life);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn name(common_name: &str, organization: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for group in organization {
        name.push(DnType::OrganizationName, *group);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn live(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    // Clocks differ a little from machine to machine.
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + life;
}

fn lasts(identity: &Identity, at_least: std::time::Duration) -> bool {
    let pair = Pair::from_pem(&identity.certificate, &identity.key).ok();
    pair.and_then(|pair| pair.left(SystemTime::now())).is_some_and(|left| left > at_least)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

fn write_private(file: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(file, bytes, 0o600)
}

/// Writes a file, whole or not at all.
pub fn write_atomically(file: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    krate_pki::write(file, bytes, mode).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_signs_for_its_users() {
        let dir = std::env::temp_dir().join(format!("krate-pki-{}", std::process::id()));
        let first = Authority::open(&dir).expect("made");
        let again = Authority::open(&dir).expect("opened");
        assert_eq!(first.certificate(), again.certificate());
        let admin =
            first.client("admin", "kubernetes-admin", &["system:masters"], Wanted::Lasting).expect("signed");
        let same =
            again.client("admin", "kubernetes-admin", &["system:masters"], Wanted::Lasting).expect("read");
        assert_eq!(admin.certificate, same.certificate, "a certificate that lasts is kept");
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let serving = again.serving("kube-apiserver", &[], &hosts).expect("signed");
        let days = |days: u64| std::time::Duration::from_hours(days * 24);
        assert!(lasts(&serving, days(364)));
        assert!(!lasts(&serving, days(366)));
        let new =
            again.client("admin", "kubernetes-admin", &["system:masters"], Wanted::New).expect("signed");
        assert_ne!(admin.certificate, new.certificate);
        assert!(first.service_account_key().expect("made").contains("PRIVATE KEY"));
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[tokio::test]
    async fn a_certificate_is_another_before_it_ends() {
        let dir = std::env::temp_dir().join(format!("krate-kept-{}", std::process::id()));
        // Dated back by five minutes, it is to be renewed a moment after it was made, or before.
        let life = Duration::seconds(100);
        let authority = Arc::new(Authority { life, ..Authority::open(&dir).expect("made") });
        let make = |authority: &Authority, wanted| authority.client("admin", "admin", &[], wanted);
        let mut current = authority.kept(make).expect("signed");
        let first = current.get().expect("a pair");
        tokio::time::timeout(std::time::Duration::from_mins(2), current.changed()).await.expect("renewed");
        let next = current.get().expect("a pair");
        assert!(next.not_after >= first.not_after && next.certificate != first.certificate);
        let kept = fs::read_to_string(dir.join("admin.crt")).expect("kept");
        assert!(kept.contains("BEGIN CERTIFICATE"));
        fs::remove_dir_all(&dir).expect("removed");
    }
}
