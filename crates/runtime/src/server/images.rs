//! CRI's `ImageService`.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_cri::v1::image_service_server::ImageService;
use k8s_cri::v1::{
    self as cri, AuthConfig, FilesystemIdentifier, FilesystemUsage, ImageSpec, Int64Value, UInt64Value,
};
use nix::sys::statvfs::statvfs;
use tonic::{Request, Response, Status};

use super::node::Node;
use super::record;
use crate::image::pull::{Credentials, pull};
use crate::image::{Image, ImageError, Progress, Reference, RegistryError};

#[derive(Clone, Debug)]
pub struct Images(pub Arc<Node>);

type Answer<T> = Result<Response<T>, Status>;

fn failed(error: impl Into<ImageError>) -> Status {
    match error.into() {
        error @ ImageError::Name(_) => Status::invalid_argument(error.to_string()),
        ImageError::Registry { name, source } if matches!(*source, RegistryError::NotFound) => {
            Status::not_found(format!("failed to pull and unpack image {name:?}: {name}: {source}"))
        }
        error @ ImageError::Registry { .. } => {
            Status::unknown(format!("failed to pull and unpack image: {error}"))
        }
        error => Status::unknown(error.to_string()),
    }
}

fn shown(image: &Image) -> cri::Image {
    let user = image.config.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok().map(|value| Int64Value { value });
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.tags.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size,
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        uid,
        spec: Some(ImageSpec { image: image.id.clone(), ..Default::default() }),
        pinned: false,
    }
}

fn named(spec: Option<ImageSpec>) -> Result<String, Status> {
    let name = spec.unwrap_or_default().image;
    if name.is_empty() { Err(Status::invalid_argument("image name is empty")) } else { Ok(name) }
}

fn credentials(auth: Option<AuthConfig>) -> Result<Credentials, Status> {
    let Some(auth) = auth else { return Ok(Credentials::Anonymous) };
    if !auth.username.is_empty() {
        return Ok(Credentials::Basic { user: auth.username, password: auth.password });
    }
    if !auth.identity_token.is_empty() {
        return Ok(Credentials::Identity(auth.identity_token));
    }
    if !auth.registry_token.is_empty() {
        return Ok(Credentials::Token(auth.registry_token));
    }
    if auth.auth.is_empty() {
        return Ok(Credentials::Anonymous);
    }
    let invalid = || Status::invalid_argument("invalid auth config");
    let decoded = STANDARD.decode(&auth.auth).map_err(|_| invalid())?;
    let text = String::from_utf8(decoded).map_err(|_| invalid())?;
    let (user, password) = text.split_once(':').ok_or_else(invalid)?;
    Ok(Credentials::Basic { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        let index = self.0.images.index().map_err(failed)?;
        let wanted = request.into_inner().filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let images = match wanted.filter(|name| !name.is_empty()) {
            Some(name) => index.find(&name).map(shown).into_iter().collect(),
            None => index.images.values().map(shown).collect(),
        };
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let index = self.0.images.index().map_err(failed)?;
        let image = index.find(&name);
        let mut info = HashMap::new();
        if let Some(image) = image.filter(|_| request.verbose) {
            let text = serde_json::to_string(&image.config).unwrap_or_default();
            info.insert("info".to_owned(), format!("{{\"imageSpec\":{text}}}"));
        }
        Ok(Response::new(cri::ImageStatusResponse { image: image.map(shown), info }))
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        let request = request.into_inner();
        let name: Reference = named(request.image)?.parse().map_err(|e| failed(ImageError::Name(e)))?;
        let credentials = credentials(request.auth)?;
        let progress = |Progress { item, done, total }: Progress| {
            if done == total {
                tracing::debug!(layer = %item, bytes = done, "layer fetched");
            }
        };
        let (images, registries) = (&self.0.images, &self.0.config.registries);
        let image =
            pull(images, registries, &name, &credentials, Arc::new(progress)).await.map_err(failed)?;
        tracing::info!(image = %name, id = %image.id, "pulled");
        Ok(Response::new(cri::PullImageResponse { image_ref: image.id }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Answer<cri::RemoveImageResponse> {
        let name = named(request.into_inner().image)?;
        let index = self.0.images.index().map_err(failed)?;
        if let Some(image) = index.find(&name) {
            let (node, id) = (Arc::clone(&self.0), image.id.clone());
            let removal = move || node.images.remove(&id, || node.layers_in_use());
            tokio::task::spawn_blocking(removal)
                .await
                .map_err(|e| Status::internal(e.to_string()))?
                .map_err(failed)?;
        }
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Answer<cri::ImageFsInfoResponse> {
        let root = self.0.images.root();
        let used = self.0.images.used().map_err(|e| failed(ImageError::from(e)))?;
        let inodes = statvfs(root).map_or(0, |stat| stat.files() - stat.files_free());
        let usage = FilesystemUsage {
            timestamp: record::now(),
            fs_id: Some(FilesystemIdentifier { mountpoint: root.display().to_string() }),
            used_bytes: Some(UInt64Value { value: used }),
            inodes_used: Some(UInt64Value { value: inodes }),
        };
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_in_several_forms() {
        let with = |auth: AuthConfig| credentials(Some(auth)).unwrap();
        let plain = AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
        assert!(matches!(with(plain), Credentials::Basic { user, .. } if user == "u"));
        let encoded = AuthConfig { auth: STANDARD.encode("a:b:c"), ..Default::default() };
        assert!(matches!(with(encoded), Credentials::Basic { password, .. } if password == "b:c"));
        assert!(matches!(with(AuthConfig::default()), Credentials::Anonymous));
        assert!(credentials(Some(AuthConfig { auth: "?".into(), ..Default::default() })).is_err());
    }
}
