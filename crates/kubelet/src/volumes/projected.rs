//! Volumes that show many things as one: objects of the API, and what the pod is given of its own, such as tokens and
//! certificates.

use std::path::Path;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, PodCertificateProjection, Volume, VolumeProjection,
};
use kube::ResourceExt as _;

use super::atomic::Payload;
use super::payload::{MODE, config_map, downward, secret, show};
use super::token::{private, token};
use super::{Context, Mounted, Plugin, VolumeError, namespace};
use crate::names;
use crate::pod_certificates::Place;

pub struct Projected;

#[async_trait]
impl Plugin for Projected {
    fn name(&self) -> &'static str {
        "kubernetes.io/projected"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
    }

    fn changes(&self) -> bool {
        true
    }

    async fn set_up(
        &self,
        context: &Context<'_>,
        volume: &Volume,
        path: &Path,
    ) -> Result<Mounted, VolumeError> {
        let projected = volume.projected.clone().unwrap_or_default();
        let mode = projected.default_mode.unwrap_or(MODE);
        let (mut payload, mut refresh_at, mut wrong) = (Payload::new(), None, Vec::new());
        for (index, source) in projected.sources.unwrap_or_default().into_iter().enumerate() {
            match files(context, &volume.name, index, source, mode, path).await {
                Ok((mut files, refresh)) => {
                    payload.append(&mut files);
                    refresh_at = [refresh_at, refresh].into_iter().flatten().min();
                }
                Err(error) => wrong.push(error),
            }
        }
        if let Some(error) = together(wrong) {
            return Err(error);
        }
        let mounted = show(context, path, payload, true).await?;
        Ok(Mounted { refresh_at, ..mounted })
    }
}

/// All that is wrong, as one.
fn together(mut wrong: Vec<VolumeError>) -> Option<VolumeError> {
    if wrong.len() < 2 {
        return wrong.pop();
    }
    let mut said: Vec<String> = Vec::new();
    for error in wrong {
        let error = error.to_string();
        if !said.contains(&error) {
            said.push(error);
        }
    }
    let one = said.len() == 1;
    let said = said.join(", ");
    Some(VolumeError::Missing(if one { said } else { format!("[{said}]") }))
}

/// What one source shows, and when that must be made anew.
async fn files(
    context: &Context<'_>,
    volume: &str,
    index: usize,
    source: VolumeProjection,
    mode: i32,
    directory: &Path,
) -> Result<(Payload, Option<Timestamp>), VolumeError> {
    let shown = if let Some(map) = source.config_map {
        config_map(context, &map.name, map.items.as_deref(), mode, map.optional == Some(true)).await?
    } else if let Some(one) = source.secret {
        secret(context, &one.name, one.items.as_deref(), mode, one.optional == Some(true)).await?
    } else if let Some(api) = source.downward_api {
        downward(context, &api.items.unwrap_or_default(), mode)?
    } else if let Some(wanted) = source.service_account_token {
        let (file, refresh) = token(context, &wanted, mode, directory).await?;
        return Ok((Payload::from([(wanted.path, file)]), Some(refresh)));
    } else if let Some(wanted) = source.cluster_trust_bundle {
        trust_bundle(context, wanted, mode).await.map_err(VolumeError::Missing)?
    } else if let Some(wanted) = source.pod_certificate {
        certificate(context, volume, index, wanted, mode).map_err(VolumeError::Missing)?
    } else {
        return Err(VolumeError::Missing("a projected source that is not known here".to_owned()));
    };
    Ok((shown, None))
}

/// Whom a pod may trust (KEP-3257).
async fn trust_bundle(
    context: &Context<'_>,
    wanted: ClusterTrustBundleProjection,
    mode: i32,
) -> Result<Payload, String> {
    let (uid, signal, optional) = (names::uid(context.pod), context.signal, wanted.optional == Some(true));
    let bundles = context.trust_bundles;
    let anchors = match (&wanted.name, &wanted.signer_name) {
        (Some(name), _) => bundles.by_name(&uid, signal, name, optional).await?,
        (None, Some(signer)) => {
            bundles.by_signer(&uid, signal, signer, wanted.label_selector.as_ref(), optional).await?
        }
        (None, None) => {
            let why = "ClusterTrustBundle projection requires either name or signerName to be set";
            return Err(why.to_owned());
        }
    };
    Ok(Payload::from([(wanted.path, private(context, anchors.into_bytes(), mode))]))
}

/// The pod's own certificate and its key (KEP-4317).
fn certificate(
    context: &Context<'_>,
    volume: &str,
    index: usize,
    wanted: PodCertificateProjection,
    mode: i32,
) -> Result<Payload, String> {
    let Some(certificates) = context.certificates else { return Err("unimplemented".to_owned()) };
    let place = Place {
        namespace: namespace(context),
        pod: context.pod.name_any(),
        uid: names::uid(context.pod),
        volume: volume.to_owned(),
        index,
    };
    let (key, chain) = certificates.bundle(&place, context.signal)?;
    let both = format!("{key}{chain}");
    let files = [
        (wanted.credential_bundle_path, both),
        (wanted.key_path, key),
        (wanted.certificate_chain_path, chain),
    ];
    let named = files.into_iter().filter_map(|(path, text)| Some((path.filter(|p| !p.is_empty())?, text)));
    Ok(named.map(|(path, text)| (path, private(context, text.into_bytes(), mode))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let said = |wrong: &[&str]| {
            let wrong = wrong.iter().map(|why| VolumeError::Missing((*why).to_owned())).collect();
            together(wrong).map(|error| error.to_string())
        };
        assert_eq!(said(&[]), None);
        assert_eq!(said(&["a"]).as_deref(), Some("a"));
        assert_eq!(said(&["a", "a"]).as_deref(), Some("a"));
        assert_eq!(said(&["a", "b", "a"]).as_deref(), Some("[a, b]"));
    }
}
