//! The file that says what is encrypted at rest (`--encryption-provider-config`), read at the start and, if asked, again
//! whenever it changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use krate_encryption::kms::Timing;
use krate_encryption::{API_VERSION, Configuration, Encryption, KIND};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::config_file;

/// How often the file is looked at, as upstream.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Where the configuration stands.
#[derive(Clone, Debug)]
pub struct EncryptionFile {
    pub path: PathBuf,
    /// Whether it is read again when it has changed (`--encryption-provider-config-automatic-reload`).
    pub reload: bool,
    /// How often it is looked at.
    pub look_every: Duration,
}

impl EncryptionFile {
    pub fn new(path: impl Into<PathBuf>, reload: bool) -> Self {
        EncryptionFile { path: path.into(), reload, look_every: LOOK_EVERY }
    }

    /// Reads the file, and follows it until `shutdown` if it is to be followed.
    ///
    /// # Errors
    /// What is wrong with it, in upstream's words.
    pub async fn open(&self, server: &str, shutdown: CancellationToken) -> Result<Arc<Encryption>, String> {
        let (config, hash) =
            load(&self.path).map_err(|error| format!("error while parsing file: {error}"))?;
        let encryption = Encryption::new(config, &hash, server, self.reload, Timing::default()).await?;
        if self.reload {
            let (file, followed) = (self.clone(), Arc::clone(&encryption));
            tokio::spawn(async move {
                tokio::select! {
                    () = file.follow(&followed, hash) => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
        Ok(encryption)
    }

    /// Takes every new content of the file for the configuration, once it is right and its plugins are well.
    async fn follow(&self, encryption: &Encryption, mut in_use: String) {
        let mut looks = tokio::time::interval(self.look_every);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let taken = match load(&self.path) {
                Ok((_, hash)) if hash == in_use => continue,
                Ok((config, hash)) => encryption.replace(config, &hash).await.map(|()| hash),
                Err(error) => {
                    encryption.could_not_reload();
                    Err(error)
                }
            };
            match taken {
                Ok(hash) => {
                    tracing::info!(path = %self.path.display(), hash, "the encryption configuration was read again");
                    in_use = hash;
                }
                Err(error) => {
                    tracing::error!(
                        "error processing encryption config file {}: {error}",
                        self.path.display()
                    );
                }
            }
        }
    }
}

/// The configuration of a file, and what its content is known by.
fn load(path: &Path) -> Result<(Configuration, String), String> {
    let shown = path.display();
    let content = std::fs::read(path).map_err(|error| {
        format!("error while loading file: error reading encryption provider configuration file \"{shown}\": {error}")
    })?;
    if content.is_empty() {
        return Err(format!(
            "error while loading file: encryption provider configuration file \"{shown}\" is empty"
        ));
    }
    let config = config_file::read(&content, &[API_VERSION], KIND).map_err(|error| {
        format!("error decoding encryption provider configuration file \"{shown}\": {error}")
    })?;
    Ok((config, format!("sha256:{}", hex::encode(Sha256::digest(&content)))))
}
