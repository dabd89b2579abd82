//! `TracingConfiguration`: where spans go, and how many requests are traced.

use serde::Deserialize;

use crate::config_file;

const VERSIONS: &[&str] =
    &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
/// Where a collector is on this machine.
const ENDPOINT: &str = "localhost:4317";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    endpoint: Option<String>,
    sampling_rate_per_million: Option<i64>,
}

/// What such a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// `HOST:PORT`; spans go there in the clear.
    pub endpoint: String,
    /// Of a million requests that come with no trace so many are traced.
    pub per_million: u64,
}

impl Tracing {
    /// Reads a file's text.
    ///
    /// # Errors
    /// It is not one, in upstream's words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let file: File = config_file::read(text, VERSIONS, "TracingConfiguration")?;
        let rate = file.sampling_rate_per_million.unwrap_or(0);
        let wrong =
            |field: &str, value: &str, why: &str| Err(format!("{field}: Invalid value: {value}: {why}"));
        if rate < 0 {
            return wrong("samplingRatePerMillion", &rate.to_string(), "sampling rate must be positive");
        }
        let Some(per_million) = u64::try_from(rate).ok().filter(|rate| *rate <= 1_000_000) else {
            let why = "sampling rate per million must be less than or equal to one million";
            return wrong("samplingRatePerMillion", &rate.to_string(), why);
        };
        let endpoint = file.endpoint.unwrap_or_else(|| ENDPOINT.to_owned());
        let place = match endpoint.split_once("://") {
            None => endpoint.as_str(),
            Some(("dns", place)) => place.trim_start_matches('/'),
            Some((scheme, _)) => {
                let why = format!("unsupported scheme: {scheme}.  Options are none or dns");
                return wrong("endpoint", &format!("{endpoint:?}"), &why);
            }
        };
        if place.is_empty() || format!("http://{place}").parse::<http::Uri>().is_err() {
            return wrong("endpoint", &format!("{endpoint:?}"), "it names no host and port");
        }
        Ok(Tracing { endpoint: place.to_owned(), per_million })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_where_and_how_many() {
        let of = |more: &str| {
            let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\n{more}");
            Tracing::parse(text.as_bytes())
        };
        let tracing =
            |endpoint: &str, per_million| Ok(Tracing { endpoint: endpoint.to_owned(), per_million });
        assert_eq!(of(""), tracing("localhost:4317", 0));
        assert_eq!(of("endpoint: a:1\nsamplingRatePerMillion: 100\n"), tracing("a:1", 100));
        assert_eq!(of("endpoint: dns:///a:1\n"), tracing("a:1", 0));
        for (more, why) in [
            (
                "samplingRatePerMillion: -1",
                "samplingRatePerMillion: Invalid value: -1: sampling rate must be positive",
            ),
            ("samplingRatePerMillion: 1000001", "must be less than or equal to one million"),
            ("endpoint: https://a:1", "unsupported scheme: https"),
            ("endpont: a:1", "unknown field \"endpont\""),
        ] {
            let error = of(more).expect_err(more);
            assert!(error.contains(why), "{error}");
        }
    }
}
