//! DefaultIngressClass: an Ingress that names no class gets the cluster's.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use krate_api::{StatusError, kinds};

use super::storage_class::{newest, says};
use super::{Admit, Attributes, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const DEFAULT: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];
/// How a class was named before there was a field for it.
const CLASS: &str = "kubernetes.io/ingress.class";

pub struct DefaultIngressClass {
    kinds: Arc<Kinds>,
}

impl DefaultIngressClass {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        DefaultIngressClass { kinds }
    }
}

#[async_trait]
impl Admit for DefaultIngressClass {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::INGRESS) {
            return Ok(());
        }
        let Some(ingress) = object.is_mut::<Ingress>() else { return Ok(()) };
        let annotated = ingress.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CLASS));
        let spec = ingress.spec.get_or_insert_default();
        if annotated || spec.ingress_class_name.is_some() {
            return Ok(());
        }
        let group = "networking.k8s.io";
        let mut classes = lookup::all::<IngressClass>(&self.kinds, group, "ingressclasses", "").await?;
        classes.retain(|class| says(&class.metadata, &DEFAULT));
        if let Some(class) = newest(classes, |class| &class.metadata) {
            spec.ingress_class_name = class.metadata.name;
        }
        Ok(())
    }
}
