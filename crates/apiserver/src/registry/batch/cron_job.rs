//! CronJob: a Job at times.

use k8s_openapi::api::batch::v1::CronJob;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::{job_spec, schedule};
use crate::registry::column::{
    age, boolean, container_images, container_names, integer, name, selector, since, text, wide,
};
use crate::registry::core::pod_spec;
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{not_negative, one_of};
use crate::registry::{Column, Strategy};

/// Eleven characters are left for the time in a Job's name.
const LONGEST_NAME: usize = 63 - 11;

impl Strategy for CronJob {
    const KIND: &'static Kind = &kinds::CRON_JOB;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Schedule", "io.k8s.api.batch.v1.CronJobSpec.schedule", |c| c.spec.schedule.as_str().into()),
        text("Timezone", "io.k8s.api.batch.v1.CronJobSpec.timeZone", |c| {
            c.spec.time_zone.as_deref().unwrap_or("<none>").into()
        }),
        boolean("Suspend", "io.k8s.api.batch.v1.CronJobSpec.suspend", |c| {
            // Words, though the type is a boolean: so upstream prints it.
            if c.spec.suspend == Some(true) { "True".into() } else { "False".into() }
        }),
        integer("Active", "io.k8s.api.batch.v1.CronJobStatus.active", |c| {
            c.status.as_ref().and_then(|s| s.active.as_ref()).map_or(0, Vec::len).into()
        }),
        text("Last Schedule", "io.k8s.api.batch.v1.CronJobStatus.lastScheduleTime", |c| {
            match c.status.as_ref().and_then(|s| s.last_schedule_time.as_ref()) {
                Some(time) => since(Some(time)).into(),
                None => "<none>".into(),
            }
        }),
        age(),
        wide("Containers", "Names of each container in the template.", |c| container_names(template(c))),
        wide("Images", "Images referenced by each container in the template.", |c| {
            container_images(template(c))
        }),
        wide("Selector", "io.k8s.api.batch.v1.JobSpec.selector", |c| {
            let spec = c.spec.job_template.spec.as_ref();
            match spec.and_then(|s| s.selector.as_ref()) {
                Some(s) => selector(Some(s)),
                None => "<none>".into(),
            }
        }),
    ];

    crate::registry::prepare::pod_spec_at!(spec job_template spec? template spec?);

    fn default(&mut self) {
        let spec = &mut self.spec;
        spec.concurrency_policy.get_or_insert_with(|| "Allow".to_owned());
        spec.suspend.get_or_insert(false);
        spec.successful_jobs_history_limit.get_or_insert(3);
        spec.failed_jobs_history_limit.get_or_insert(1);
        spec.job_template.metadata.get_or_insert_default();
        pod_spec::default_template(&mut spec.job_template.spec.get_or_insert_default().template);
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation);

    fn validate_name(name: &str) -> Vec<String> {
        let mut wrong = krate_api::names::is_dns1123_subdomain(name);
        if name.len() > LONGEST_NAME {
            wrong.push(format!("must be no more than {LONGEST_NAME} characters"));
        }
        wrong
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let spec = &self.spec;
        if spec.schedule.is_empty() {
            errors.required(&at.child("schedule"), "");
        } else if spec.schedule.contains("TZ") {
            errors.invalid(
                &at.child("schedule"),
                &spec.schedule,
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            );
        } else if let Err(why) = schedule::check(&spec.schedule) {
            errors.invalid(&at.child("schedule"), &spec.schedule, why);
        }
        if let Some(seconds) = spec.starting_deadline_seconds {
            not_negative(seconds, &at.child("startingDeadlineSeconds"), errors);
        }
        if let Some(zone) = &spec.time_zone {
            time_zone(zone, &at.child("timeZone"), errors);
        }
        match spec.concurrency_policy.as_deref().unwrap_or_default() {
            "" => errors.required(&at.child("concurrencyPolicy"), ""),
            policy => one_of(policy, &["Allow", "Forbid", "Replace"], &at.child("concurrencyPolicy"), errors),
        }
        for (name, limit) in [
            ("successfulJobsHistoryLimit", spec.successful_jobs_history_limit),
            ("failedJobsHistoryLimit", spec.failed_jobs_history_limit),
        ] {
            if let Some(limit) = limit {
                not_negative(limit, &at.child(name), errors);
            }
        }
        let Some(job) = &spec.job_template.spec else { return };
        let at = at.child("jobTemplate").child("spec");
        job_spec::validate(job, &at, errors);
        if let Some(selector) = &job.selector {
            errors.invalid(&at.child("selector"), selector, "`selector` will be auto-generated");
        }
        if job.manual_selector == Some(true) {
            errors.not_supported(&at.child("manualSelector"), true, &["nil", "false"]);
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let at = FieldPath::new("spec").child("jobTemplate").child("spec");
        let spec = self.spec.job_template.spec.as_ref();
        job_spec::warnings(&self.metadata, old.map(|old| &old.metadata), spec, &at)
    }
}

fn template(c: &CronJob) -> Option<&k8s_openapi::api::core::v1::PodTemplateSpec> {
    c.spec.job_template.spec.as_ref().map(|s| &s.template)
}

fn time_zone(zone: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if zone.is_empty() {
        errors.invalid(at, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        errors.invalid(
            at,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    } else if !jiff::tz::TimeZone::get(zone).is_ok_and(|found| found.iana_name() == Some(zone)) {
        // Zones are found however they are written, and upstream knows them as they are.
        errors.invalid(at, zone, format!("unknown time zone {zone}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cron_job(name: &str, zone: &str, more: Value) -> CronJob {
        let mut job = json!({"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}});
        if let (Some(job), Value::Object(more)) = (job.as_object_mut(), more) {
            job.extend(more);
        }
        let spec = json!({"schedule": "* * * * *", "timeZone": zone, "jobTemplate": {"spec": job}});
        let whole = json!({"metadata": {"name": name}, "spec": spec});
        let mut whole: CronJob = serde_json::from_value(whole).expect("a CronJob");
        Strategy::default(&mut whole);
        whole
    }

    fn said(cron_job: &CronJob) -> String {
        let mut errors = FieldErrors::new();
        cron_job.validate(&FieldPath::new(""), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn the_jobs_choose_their_pods_themselves() {
        let chosen = json!({"manualSelector": true, "selector": {"matchLabels": {"a": "b"}}});
        let said = said(&cron_job("c", "UTC", chosen));
        assert!(
            said.contains(
                "spec.jobTemplate.spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: `selector` will be \
                 auto-generated"
            ),
            "{said}"
        );
        let manual = "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"";
        assert!(said.contains(manual), "{said}");
    }

    #[test]
    fn time_zones_are_written_as_they_are_named() {
        assert_eq!(said(&cron_job("c", "UTC", json!({}))), "[]");
        for zone in ["utc", "america/new_york"] {
            assert_eq!(
                said(&cron_job("c", zone, json!({}))),
                format!("spec.timeZone: Invalid value: \"{zone}\": unknown time zone {zone}")
            );
        }
    }

    #[test]
    fn a_new_cron_job_is_warned_of_its_name() {
        let named = cron_job("c.d", "UTC", json!({}));
        assert_eq!(named.warnings(None).len(), 1);
        assert_eq!(named.warnings(Some(&named)).len(), 0);
    }
}
