//! What a request asks for, read from its PKCS #10 form, and what a kubelet's must be.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";

/// The names beside the subject, as they stand in the certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub dns: Vec<String>,
    /// Four bytes, or sixteen.
    pub ips: Vec<Vec<u8>>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
}

impl Names {
    pub fn is_empty(&self) -> bool {
        *self == Names::default()
    }
}

/// A request whose signature has not been looked at.
#[derive(Debug)]
pub struct Request {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub names: Names,
    /// DER: the subject whole, and the key that it is for.
    pub subject: Vec<u8>,
    pub public_key: Vec<u8>,
    der: Vec<u8>,
}

impl Request {
    /// # Errors
    /// It is no request.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let block = x509_parser::pem::parse_x509_pem(pem).map(|(_, block)| block);
        let Some(block) = block.ok().filter(|block| block.label == "CERTIFICATE REQUEST") else {
            return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
        };
        let (_, parsed) =
            X509CertificationRequest::from_der(&block.contents).map_err(|error| error.to_string())?;
        let info = &parsed.certification_request_info;
        let mut names = Names::default();
        for extension in parsed.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(all) = extension else { continue };
            for name in &all.general_names {
                match name {
                    GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                    GeneralName::IPAddress(address) => names.ips.push(address.to_vec()),
                    GeneralName::RFC822Name(name) => names.emails.push((*name).to_owned()),
                    GeneralName::URI(name) => names.uris.push((*name).to_owned()),
                    // Others are not taken over.
                    _ => {}
                }
            }
        }
        let common_name = info.subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Request {
            common_name: common_name.unwrap_or_default().to_owned(),
            organizations: info
                .subject
                .iter_organization()
                .filter_map(|name| name.as_str().ok())
                .map(str::to_owned)
                .collect(),
            names,
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            der: block.contents.clone(),
        })
    }

    /// Whether who asks has the key.
    pub fn is_signed(&self) -> bool {
        X509CertificationRequest::from_der(&self.der)
            .is_ok_and(|(_, parsed)| parsed.verify_signature().is_ok())
    }

    /// What keeps this from being a kubelet's request for a client certificate.
    ///
    /// # Errors
    /// Upstream's message.
    pub fn is_kubelet_client(&self, usages: &[String]) -> Result<(), String> {
        self.is_of_nodes()?;
        for (there, what) in [
            (!self.names.dns.is_empty(), "DNS"),
            (!self.names.emails.is_empty(), "Email"),
            (!self.names.ips.is_empty(), "IP"),
            (!self.names.uris.is_empty(), "URI"),
        ] {
            if there {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        self.is_of_a_node()?;
        are_for(usages, "client auth")
    }

    /// The same for a serving certificate.
    ///
    /// # Errors
    /// Upstream's message.
    pub fn is_kubelet_serving(&self, usages: &[String]) -> Result<(), String> {
        self.is_of_nodes()?;
        if self.names.dns.is_empty() && self.names.ips.is_empty() {
            return Err("DNS or IP subjectAltName is required".to_owned());
        }
        for (there, what) in [(!self.names.emails.is_empty(), "Email"), (!self.names.uris.is_empty(), "URI")]
        {
            if there {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        are_for(usages, "server auth")?;
        self.is_of_a_node()
    }

    fn is_of_nodes(&self) -> Result<(), String> {
        if self.organizations == [NODES] {
            return Ok(());
        }
        Err(format!("subject organization is not {NODES}"))
    }

    fn is_of_a_node(&self) -> Result<(), String> {
        if self.common_name.starts_with(NODE) {
            return Ok(());
        }
        Err(format!("subject common name does not begin with {NODE}"))
    }
}

/// Whether a certificate is for this and for what goes with it, and nothing else. Keys of RSA encipher others too.
fn are_for(usages: &[String], purpose: &str) -> Result<(), String> {
    const SIGNATURE: &str = "digital signature";
    const ENCIPHERMENT: &str = "key encipherment";
    let has = |usage: &str| usages.iter().any(|there| there == usage);
    let known = |usage: &String| [SIGNATURE, ENCIPHERMENT, purpose].contains(&usage.as_str());
    if has(SIGNATURE) && has(purpose) && usages.iter().all(known) {
        return Ok(());
    }
    let mut expected = [SIGNATURE, ENCIPHERMENT, purpose];
    expected.sort_unstable();
    Err(format!("usages did not match [{}]", expected.join(" ")))
}

#[cfg(test)]
pub mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    /// A request, PEM.
    pub fn pem(user: &str, group: &str, hosts: &[&str]) -> Vec<u8> {
        let key = KeyPair::generate().expect("a key");
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, user);
        params.serialize_request(&key).expect("a request").pem().expect("PEM").into_bytes()
    }

    #[test]
    fn a_request_is_read_and_its_signature_is_judged() {
        let request = Request::parse(&pem("amy", "dev", &["a.test", "10.0.0.1"])).expect("a request");
        assert_eq!(
            (request.common_name.as_str(), request.organizations.join(" ")),
            ("amy", "dev".to_owned())
        );
        assert_eq!(
            (request.names.dns.join(" "), request.names.ips.clone()),
            ("a.test".to_owned(), vec![vec![10, 0, 0, 1]])
        );
        assert!(request.is_signed());
        let mut forged = request;
        let last = forged.der.len() - 1;
        forged.der[last] ^= 1;
        assert!(!forged.is_signed());
        assert!(Request::parse(b"nothing").expect_err("refused").contains("PEM block type"));
    }

    #[test]
    fn a_kubelet_asks_in_one_way_only() {
        let all: Vec<String> =
            ["digital signature", "key encipherment", "client auth"].map(str::to_owned).into();
        let client = |user: &str, group: &str, hosts: &[&str], usages: &[String]| {
            Request::parse(&pem(user, group, hosts)).expect("a request").is_kubelet_client(usages)
        };
        assert_eq!(client("system:node:a", NODES, &[], &all), Ok(()));
        assert_eq!(client("system:node:a", NODES, &[], &[all[0].clone(), all[2].clone()]), Ok(()));
        for (user, group, hosts, usages, said) in [
            ("system:node:a", "dev", &[][..], &all[..], "organization is not system:nodes"),
            ("amy", NODES, &[], &all, "does not begin with system:node:"),
            ("system:node:a", NODES, &["a.test"], &all, "DNS subjectAltNames are not allowed"),
            ("system:node:a", NODES, &["10.0.0.1"], &all, "IP subjectAltNames are not allowed"),
            (
                "system:node:a",
                NODES,
                &[],
                &all[..2],
                "usages did not match [client auth digital signature key encipherment]",
            ),
        ] {
            let refused = client(user, group, hosts, usages).expect_err(said);
            assert!(refused.contains(said), "{refused}");
        }
        let serving: Vec<String> = ["digital signature", "server auth"].map(str::to_owned).into();
        let server = |hosts: &[&str]| {
            Request::parse(&pem("system:node:a", NODES, hosts))
                .expect("a request")
                .is_kubelet_serving(&serving)
        };
        assert_eq!(server(&["10.0.0.1"]), Ok(()));
        assert_eq!(server(&[]), Err("DNS or IP subjectAltName is required".to_owned()));
    }
}
