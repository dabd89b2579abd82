//! Prefers nodes that have a pod's images already, the more the larger they are and the more nodes have them.

use crate::framework::{Cycle, MAX_SCORE, Plugin, Score};
use crate::nodes::{Image, NodeId};

const MB: i64 = 1024 * 1024;
/// Images smaller than this, together, make no difference.
const LEAST: i64 = 23 * MB;
/// And larger than this, for each container, no more.
const MOST: i64 = 1000 * MB;

pub struct ImageLocality;

struct Local<'a> {
    images: Vec<&'a Image>,
    nodes: i64,
    containers: i64,
}

/// An image's name as a node reports it: with a tag, `latest` if it has none.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') { image.to_owned() } else { format!("{image}:latest") }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let spec = cycle.pod.spec();
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let names = containers.clone().filter_map(|c| c.image.as_deref());
        let known: Vec<_> = names.filter_map(|n| cycle.nodes.images.get(&normalized(n))).collect();
        (!known.is_empty()).then(|| {
            Box::new(Local {
                images: known,
                nodes: cycle.nodes.order().len().max(1) as i64,
                containers: containers.count() as i64,
            }) as _
        })
    }
}

impl Score for Local<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let here = self.images.iter().filter(|i| i.nodes.contains(&node));
        let sum: i64 = here.map(|i| i.size * i.nodes.len() as i64 / self.nodes).sum();
        let most = MOST * self.containers;
        MAX_SCORE * (sum.clamp(LEAST, most) - LEAST) / (most - LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::normalized;

    #[test]
    fn names_get_a_tag() {
        for (image, wanted) in
            [("nginx", "nginx:latest"), ("h:5000/nginx", "h:5000/nginx:latest"), ("a/b:1", "a/b:1")]
        {
            assert_eq!(normalized(image), wanted);
        }
    }
}
