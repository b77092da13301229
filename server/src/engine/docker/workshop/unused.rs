//! What nobody needs any more: containers of installations that broke off, and derived images that no configured pool
//! wishes for and no container stands on.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime},
};

use bollard::{
    models::{ContainerSummary, ContainerSummaryStateEnum, ImageSummary},
    query_parameters::{ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptions},
};

use super::{
    super::{
        call,
        image::remove,
        image::{SOURCE, inspect},
        listing,
    },
    BUILDER, DERIVED, KEEPING, Workshop, name_of,
};
use crate::engine::{Derivation, EngineError};

/// A builder that was created and not started for so long is nobody's any more.
const NEVER_STARTED: Duration = Duration::from_secs(600);

/// A keeper this old is nobody's any more: what is put into it and its commit may each take [`call::LAYER`]'s time, and
/// there is some between.
const KEPT: Duration = Duration::from_secs(2 * call::LAYER.deadline().as_secs() + 600);

/// A younger one may be a server's that has another configuration, or the first sandbox may still be on its way.
const YOUNG: Duration = Duration::from_secs(3600);

impl Workshop {
    /// See [`crate::engine::Engine::unused_images`].
    pub(in super::super) async fn unused(&self, wanted: &[Derivation]) -> Result<Vec<String>, EngineError> {
        let mut names = HashSet::new();
        for order in wanted {
            match inspect(&self.docker, &order.image).await {
                Ok(source) => names.insert(name_of(
                    &order.dependencies.digest(&source.id.unwrap_or_default()),
                )),
                // What stands on an image that is gone can only stay as it is.
                Err(EngineError::NoImage { .. }) => continue,
                Err(error) => return Err(error),
            };
        }
        let all = ListContainersOptionsBuilder::default().all(true).build();
        let containers = call::LIST.run(self.docker.list_containers(Some(all))).await?;
        let filters = HashMap::from([("label", vec![format!("{DERIVED}={}", self.fingerprint)])]);
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        let images = call::LIST.run(self.docker.list_images(Some(options))).await?;
        let now = SystemTime::now();
        Ok(unused(&images, &containers, &self.fingerprint, &names, now))
    }

    /// See [`crate::engine::Engine::remove_image`]. Not by force: the engine refuses if a container has come to use it.
    pub(in super::super) async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        match call::REMOVE
            .run(self.docker.remove_image(name, None::<RemoveImageOptions>, None))
            .await
        {
            Err(failure) if failure.status() != Some(404) => Err(failure.into()),
            _ => Ok(()),
        }
    }

    /// Removes builders and keepers that nobody waits for any more, and answers how many. One that stays keeps no other.
    pub(in super::super) async fn sweep(&self) -> Result<usize, EngineError> {
        let ours = format!("{}={}", listing::DEPLOYMENT, self.deployment);
        let filters = HashMap::from([("label", vec![ours, BUILDER.to_owned()])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let builders = call::LIST.run(self.docker.list_containers(Some(options))).await?;
        let filters = HashMap::from([("name", vec![KEEPING.to_owned()])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let keepers = call::LIST.run(self.docker.list_containers(Some(options))).await?;
        let now = SystemTime::now();
        let mut due = abandoned(&builders, now);
        due.extend(outlived(
            &keepers,
            &format!("/{KEEPING}-{}-", self.fingerprint),
            now,
        ));
        let mut first = Ok(due.len());
        for container in &due {
            tracing::warn!(container, "removing a container that packages were installed in");
            match remove(&self.docker, container).await {
                Ok(()) => self.removed.note(container.clone()),
                Err(failure) => first = first.and(Err(failure.into())),
            }
        }
        first
    }
}

/// Images that carry this fingerprint, prepared ones before those that they stand on, by a name that can be removed.
fn unused(
    images: &[ImageSummary],
    containers: &[ContainerSummary],
    fingerprint: &str,
    wanted: &HashSet<String>,
    now: SystemTime,
) -> Vec<String> {
    let ours = |image: &&ImageSummary| {
        image
            .labels
            .get(DERIVED)
            .is_some_and(|owner| owner == fingerprint)
    };
    let used: HashSet<&str> = containers
        .iter()
        .filter_map(|container| container.image_id.as_deref())
        .collect();
    // What a sandbox stands on is needed with all that it stands on.
    let sources: HashSet<&str> = images
        .iter()
        .filter(|image| used.contains(image.id.as_str()))
        .filter_map(|image| image.labels.get(SOURCE).map(String::as_str))
        .collect();
    let is_due = |image: &&ImageSummary| {
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(image.created.max(0).unsigned_abs());
        let mut names = image.repo_tags.iter().chain(image.labels.get(SOURCE));
        now.duration_since(created).is_ok_and(|age| age > YOUNG)
            && !used.contains(image.id.as_str())
            && !names.any(|name| wanted.contains(name) || sources.contains(name.as_str()))
    };
    let mut due: Vec<&ImageSummary> = images.iter().filter(ours).filter(is_due).collect();
    due.sort_by_key(|image| !image.labels.contains_key(SOURCE));
    let name = |image: &ImageSummary| image.repo_tags.first().unwrap_or(&image.id).clone();
    due.into_iter().map(name).collect()
}

/// Containers whose time is over: they ended by themselves, never began, or run for twice as long as they may.
fn abandoned(builders: &[ContainerSummary], now: SystemTime) -> Vec<String> {
    let of_age = |builder: &&ContainerSummary| {
        let created = u64::try_from(builder.created?).ok()?;
        let age = now
            .duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(created))
            .ok()?;
        let allowed = builder.labels.as_ref()?.get(BUILDER)?.parse().ok()?;
        Some(match builder.state? {
            ContainerSummaryStateEnum::CREATED => age > NEVER_STARTED,
            ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD => true,
            ContainerSummaryStateEnum::RUNNING
            | ContainerSummaryStateEnum::PAUSED
            | ContainerSummaryStateEnum::RESTARTING
            | ContainerSummaryStateEnum::REMOVING
            | ContainerSummaryStateEnum::STOPPING
            | ContainerSummaryStateEnum::EMPTY => age > 2 * Duration::from_secs(allowed),
        })
    };
    builders
        .iter()
        .filter(|builder| of_age(builder) == Some(true))
        .filter_map(|builder| builder.id.clone())
        .collect()
}

/// Keepers of ours that are older than [`KEPT`].
fn outlived(keepers: &[ContainerSummary], prefix: &str, now: SystemTime) -> Vec<String> {
    let is_due = |keeper: &&ContainerSummary| {
        let mut names = keeper.names.iter().flatten();
        let created = keeper.created.and_then(|seconds| u64::try_from(seconds).ok());
        names.any(|name| name.starts_with(prefix))
            && created.is_some_and(|seconds| {
                let created = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
                now.duration_since(created).is_ok_and(|age| age > KEPT)
            })
    };
    keepers
        .iter()
        .filter(is_due)
        .filter_map(|keeper| keeper.id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_swept_when_no_upload_and_commit_can_take_so_long() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        for (name, age, due) in [
            ("/greenroom-keep-me-1", 1_300, false),
            ("/greenroom-keep-me-1", 1_900, true),
            ("/greenroom-keep-you-1", 1_900, false),
            ("/greenroom-prepare-me-1", 1_900, false),
        ] {
            let keeper = ContainerSummary {
                id: Some("c0ffee".into()),
                names: Some(vec![name.to_owned()]),
                created: Some(10_000 - age),
                ..ContainerSummary::default()
            };
            let swept = outlived(&[keeper], "/greenroom-keep-me-", now);
            assert_eq!(swept.len(), usize::from(due), "{name} {age}");
        }
    }

    fn image(tag: &str, source: Option<&str>, owner: &str, created: i64) -> ImageSummary {
        let labels = [(DERIVED, Some(owner)), (SOURCE, source)];
        let labels = labels
            .into_iter()
            .filter_map(|(label, value)| Some((label.to_owned(), value?.to_owned())));
        ImageSummary {
            id: format!("sha256:{tag}"),
            repo_tags: vec![tag.to_owned()],
            labels: labels.collect::<HashMap<_, _>>(),
            created,
            ..ImageSummary::default()
        }
    }

    #[test]
    fn what_no_pool_wishes_for_and_no_sandbox_stands_on_is_unused() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let images = [
            image("derived:old", None, "me", 0),
            image("prepared:old", Some("derived:old"), "me", 0),
            image("derived:wanted", None, "me", 0),
            image("prepared:wanted", Some("derived:wanted"), "me", 0),
            image("derived:stood-on", None, "me", 0),
            image("prepared:in-use", Some("derived:stood-on"), "me", 0),
            image("derived:young", None, "me", 9_000),
            image("derived:anothers", None, "you", 0),
            ImageSummary {
                id: "sha256:plain".into(),
                ..ImageSummary::default()
            },
        ];
        let container = ContainerSummary {
            image_id: Some("sha256:prepared:in-use".into()),
            ..ContainerSummary::default()
        };
        let wanted = HashSet::from(["derived:wanted".to_owned()]);
        assert_eq!(
            unused(&images, &[container], "me", &wanted, now),
            ["prepared:old", "derived:old"]
        );
    }

    #[test]
    fn only_builders_whose_time_is_over_are_abandoned() {
        use ContainerSummaryStateEnum as State;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        for (state, age, due) in [
            (State::CREATED, 500, false),
            (State::CREATED, 700, true),
            (State::RUNNING, 1_900, false),
            (State::RUNNING, 2_100, true),
            (State::PAUSED, 2_100, true),
            (State::EXITED, 1, true),
        ] {
            let builder = ContainerSummary {
                id: Some("c0ffee".into()),
                created: Some(10_000 - age),
                state: Some(state),
                labels: Some(HashMap::from([(BUILDER.to_owned(), "1000".to_owned())])),
                ..ContainerSummary::default()
            };
            assert_eq!(
                abandoned(&[builder], now).len(),
                usize::from(due),
                "{state} {age}"
            );
        }
    }
}
