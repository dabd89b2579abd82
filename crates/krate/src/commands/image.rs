//! `krate image`: the images of this machine's node, whether the cluster runs or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use krate_runtime::image::pull::{Credentials, pull};
use krate_runtime::image::{self, ImageRef, Store};

use crate::cli::Image;
use crate::datadir::DataDir;

pub async fn run(dir: &DataDir, command: Image) -> Result<()> {
    let root: PathBuf = dir.runtime();
    match command {
        Image::Import { files } => {
            for image in with_bars(move |progress| image::import(&root, &files, progress)).await? {
                println!("imported {}", names(&image).join(", "));
            }
        }
        Image::Ls => list(&root)?,
        Image::Pull { images } => {
            let store = Arc::new(Store::open(&root.join("images"))?);
            let registries = dir.registries();
            for name in images {
                let bars = Arc::new(Bars::default());
                let shown = Arc::clone(&bars);
                let image = pull(
                    &store,
                    &registries,
                    &name.parse()?,
                    &Credentials::Anonymous,
                    Arc::new(move |progress| shown.show(&progress)),
                )
                .await?;
                bars.clear();
                println!("pulled {}", names(&image.into()).join(", "));
            }
        }
    }
    Ok(())
}

async fn with_bars<T: Send + 'static>(
    work: impl FnOnce(image::ProgressFn<'_>) -> Result<T, image::ImageError> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(move || {
        let bars = Bars::default();
        let done = work(&|progress| bars.show(&progress));
        bars.clear();
        done
    });
    Ok(done.await??)
}

/// What an image is called: its tags, or its digests, or at least its id.
fn names(image: &ImageRef) -> Vec<String> {
    let named = [&image.tags, &image.digests].into_iter().find(|names| !names.is_empty());
    named.cloned().unwrap_or_else(|| vec![image.id.clone()])
}

fn list(root: &Path) -> Result<()> {
    let images: Vec<ImageRef> = image::list(root)?;
    let rows: Vec<(String, String, String)> = images
        .iter()
        .flat_map(|image| {
            let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
            let size = indicatif::DecimalBytes(image.size).to_string();
            names(image).into_iter().map(move |name| (name, id.clone(), size.clone()))
        })
        .collect();
    let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0).max("IMAGE".len());
    println!("{:width$}  {:12}  SIZE", "IMAGE", "ID");
    for (name, id, size) in rows {
        println!("{name:width$}  {id:12}  {size}");
    }
    Ok(())
}

/// A bar for each thing that is under way.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: std::sync::Mutex<std::collections::HashMap<String, ProgressBar>>,
}

impl Bars {
    fn show(&self, progress: &image::Progress) {
        let Ok(mut bars) = self.bars.lock() else { return };
        let bar = bars.entry(progress.item.clone()).or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{msg:30!} {bar:30} {decimal_bytes:>10}/{decimal_total_bytes:10}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = self.all.add(ProgressBar::new(progress.total).with_style(style));
            bar.set_message(progress.item.clone());
            bar
        });
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    }

    fn clear(&self) {
        let _ = self.all.clear();
    }
}
