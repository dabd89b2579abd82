//! What `krate up` prints: each part as it gets ready, with the time since the start.

use std::path::Path;
use std::time::Instant;

use crate::commands::KUBERNETES;
use crate::datadir::DataDir;

#[derive(Clone)]
pub struct Progress {
    start: Instant,
}

impl Progress {
    pub fn start(dir: &DataDir) -> Self {
        println!(
            "krate v{} (Kubernetes {KUBERNETES}), data in {}",
            env!("CARGO_PKG_VERSION"),
            dir.root().display()
        );
        Progress { start: Instant::now() }
    }

    /// Says that `part` is ready.
    pub fn ready(&self, part: &str, what: &str) {
        let line = format!("  {part:<19} {:>5} ms  {what}", self.start.elapsed().as_millis());
        println!("{}", line.trim_end());
    }

    /// Says that all is ready, where the kubeconfig is, and three things to try.
    pub fn done(&self, dir: &DataDir, merged: Option<&Path>, node: bool) {
        let elapsed = self.start.elapsed().as_millis();
        println!();
        println!("kubeconfig: {}", dir.kubeconfig().display());
        let kubectl = if let Some(file) = merged {
            println!("context \"{}\" is the current one of {}", dir.context_name(), file.display());
            "kubectl".to_owned()
        } else {
            format!("kubectl --kubeconfig {}", dir.kubeconfig().display())
        };
        println!("\ntry:");
        println!("  {kubectl} get nodes,pods -A");
        if node {
            println!("  {kubectl} apply -f examples/hello.yaml");
        } else {
            println!("  {kubectl} create configmap first --from-literal=key=value");
        }
        println!("  {kubectl} api-resources");
        // Last, since whoever waits for this line may then go.
        println!("\nReady in {elapsed} ms.");
    }
}
