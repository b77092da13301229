//! Which images and containers of earlier preparations nobody needs any more.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use bollard::models::{ContainerSummary, ImageSummary};

use super::REPOSITORY;

/// An unused prepared image this old is nobody's any more: its pool would have filled long ago.
const STALE_IMAGE: Duration = Duration::from_secs(3600);
/// A container this old that an image was prepared in outlived its server.
const STALE_PREPARATION: Duration = Duration::from_secs(600);

/// Prepared images that are older than [`STALE_IMAGE`], not the current one, and that no container uses.
pub(super) fn images<'a>(
    images: &'a [ImageSummary],
    containers: &[ContainerSummary],
    current: &str,
    now: SystemTime,
) -> Vec<&'a str> {
    let used: HashSet<&str> = containers
        .iter()
        .filter_map(|container| container.image_id.as_deref())
        .collect();
    images
        .iter()
        .filter(|image| {
            let ours = image.repo_tags.iter().all(|tag| tag.starts_with(REPOSITORY));
            let named = image.repo_tags.iter().any(|tag| tag == current);
            ours && !named && !used.contains(image.id.as_str()) && older(image.created, STALE_IMAGE, now)
        })
        .map(|image| image.id.as_str())
        .collect()
}

/// Containers of preparations that are older than [`STALE_PREPARATION`].
pub(super) fn preparations(containers: &[ContainerSummary], prefix: &str, now: SystemTime) -> Vec<String> {
    containers
        .iter()
        .filter(|container| older(container.created.unwrap_or(i64::MAX), STALE_PREPARATION, now))
        .filter_map(|container| container.names.as_ref()?.first())
        .map(|name| name.trim_start_matches('/').to_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn older(created: i64, age: Duration, now: SystemTime) -> bool {
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(created.max(0).unsigned_abs());
    now.duration_since(created).is_ok_and(|passed| passed > age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_unused_images_of_ours_are_stale() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let image = |id: &str, tag: &str, created| ImageSummary {
            id: id.to_owned(),
            repo_tags: (!tag.is_empty()).then(|| tag.to_owned()).into_iter().collect(),
            created,
            ..ImageSummary::default()
        };
        let images = [
            image("current", "greenroom/prepared:1", 0),
            image("used", "greenroom/prepared:2", 0),
            image("old", "greenroom/prepared:3", 0),
            image("young", "greenroom/prepared:4", 9_000),
            image("untagged", "", 0),
            image("somebody's", "app:latest", 0),
        ];
        let container = ContainerSummary {
            image_id: Some("used".into()),
            ..ContainerSummary::default()
        };
        assert_eq!(
            super::images(&images, &[container], "greenroom/prepared:1", now),
            ["old", "untagged"]
        );
    }

    #[test]
    fn only_old_preparations_of_ours_are_stale() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let container = |name: &str, created| ContainerSummary {
            names: Some(vec![format!("/{name}")]),
            created: Some(created),
            ..ContainerSummary::default()
        };
        let containers = [
            container("greenroom-prepare-ours-1", 0),
            container("greenroom-prepare-ours-2", 900),
            container("greenroom-prepare-theirs-3", 0),
        ];
        assert_eq!(
            preparations(&containers, "greenroom-prepare-ours-", now),
            ["greenroom-prepare-ours-1"]
        );
    }
}
