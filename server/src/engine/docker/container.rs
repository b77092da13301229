//! The container that a sandbox is: every limit and every closed door, in one value.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountTmpfsOptions, MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use greenroom_protocol::{AGENT_PATH, Begin, WORK_DIR};

use crate::sandbox::SandboxSpec;

/// Host tasks below which gVisor itself dies: an idle sandbox has 34, and at 64 the sentry is gone.
const LEAST_PIDS: u32 = 512;
/// The largest file: the largest disk a pool can have. Keeps a sparse file from pretending to be more.
pub(super) const FILE_BYTES: i64 = 16 << 30;
/// What the agent needs to be root over children of another user: signal them, become them, give them their
/// directories. Children have none of it.
const CAPABILITIES: [&str; 4] = ["CHOWN", "KILL", "SETGID", "SETUID"];

/// The request that creates a sandbox: `labels` and `cgroup_parent` are the engine's, `volumes` the image's.
pub(super) fn body(
    spec: &SandboxSpec,
    config: String,
    volumes: &[String],
    labels: HashMap<String, String>,
    cgroup_parent: String,
) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        labels: Some(labels),
        // The same for all: a name must not tell conversations, hosts or ids.
        hostname: Some("sandbox".into()),
        domainname: Some(String::new()),
        user: Some("0:0".into()),
        working_dir: Some(WORK_DIR.into()),
        entrypoint: Some(vec![AGENT_PATH.into(), "init".into(), config]),
        // An empty list keeps the image's; the entrypoint above makes the engine drop that.
        cmd: None,
        // Nothing of the host's environment: the image's own is all there is.
        env: Some(Vec::new()),
        attach_stdin: Some(false),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        // A health check would be one exec per tick.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".into()]),
            ..HealthConfig::default()
        }),
        host_config: Some(host_config(spec, volumes, cgroup_parent)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &SandboxSpec, volumes: &[String], cgroup_parent: String) -> HostConfig {
    let memory = i64::try_from(spec.memory_bytes).unwrap_or(i64::MAX);
    HostConfig {
        runtime: Some(spec.runtime.clone()),
        network_mode: Some("none".into()),
        // Without these the engine copies the host's resolver and search domains into /etc/resolv.conf.
        dns: Some(vec!["127.0.0.1".into()]),
        dns_search: Some(vec![".".into()]),
        dns_options: Some(Vec::new()),
        cgroup_parent: Some(cgroup_parent),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        ipc_mode: Some("private".into()),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(CAPABILITIES.map(String::from).into()),
        security_opt: Some(vec!["no-new-privileges".into()]),
        privileged: Some(false),
        memory: Some(memory),
        // Memory and swap together: no swap.
        memory_swap: Some(memory),
        // /dev/shm is memory too; multiprocessing wants more of it than the 64 MiB that are usual.
        shm_size: Some(share(memory)),
        nano_cpus: Some(i64::from(spec.cpu_millis) * 1_000_000),
        pids_limit: Some(i64::from(spec.pids.max(LEAST_PIDS))),
        ulimits: Some(vec![
            limit("nproc", i64::from(spec.nproc)),
            limit("nofile", i64::from(spec.nofile)),
            limit("fsize", FILE_BYTES),
            limit("core", 0),
        ]),
        log_config: Some(log_config(spec)),
        // The agent is PID 1 and reaps.
        init: Some(false),
        // An exited one still tells why it ended.
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        mounts: Some(
            volumes
                .iter()
                .map(|target| tmpfs(target, share(memory)))
                .collect(),
        ),
        ..HostConfig::default()
    }
}

/// Nobody reads PID 1's output, and a log file would grow on the host. Of an image's own program the last words are
/// kept, and no more than fits into a small file whatever is written to it.
fn log_config(spec: &SandboxSpec) -> HostConfigLogConfig {
    let (typ, config) = match spec.agent.begin {
        Begin::AtOnce | Begin::Told => ("none", None),
        Begin::WithApp => ("json-file", Some([("max-size", "128k"), ("max-file", "1")])),
    };
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    HostConfigLogConfig {
        typ: Some(typ.into()),
        config: config.map(|config| config.map(owned).into()),
    }
}

/// A quarter of the memory, and no less than what is usual for /dev/shm.
pub(super) fn share(memory: i64) -> i64 {
    (memory / 4).max(64 << 20)
}

pub(super) fn limit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some(name.into()),
        soft: Some(value),
        hard: Some(value),
    }
}

/// Stands where the image has a VOLUME: the engine would put a host directory without a limit there.
pub(super) fn tmpfs(target: &str, size: i64) -> Mount {
    Mount {
        target: Some(target.into()),
        typ: Some(MountType::TMPFS),
        tmpfs_options: Some(MountTmpfsOptions {
            size_bytes: Some(size),
            mode: Some(0o1777),
            options: None,
        }),
        ..Mount::default()
    }
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::AgentConfig;

    use super::*;
    use crate::conversation::PoolName;
    use crate::sandbox::Stay;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            pool: PoolName::parse("python").unwrap(),
            image: "greenroom/prepared:1".into(),
            runtime: "runsc-4g".into(),
            cpu_millis: 1500,
            memory_bytes: 1 << 30,
            pids: 64,
            nproc: 128,
            nofile: 1024,
            stay: Stay::default(),
            agent: AgentConfig::default(),
        }
    }

    /// The whole request, so that any change of what a sandbox may do is seen in a review.
    #[test]
    fn every_door_is_closed() {
        let body = body(
            &spec(),
            "{}".into(),
            &["/var/lib/x".to_owned()],
            HashMap::from([("a".to_owned(), "b".to_owned())]),
            "greenroom_1".into(),
        );
        let host = serde_json::json!({
            "Runtime": "runsc-4g",
            "NetworkMode": "none",
            "Dns": ["127.0.0.1"], "DnsSearch": ["."], "DnsOptions": [],
            "CgroupParent": "greenroom_1", "CgroupnsMode": "private", "IpcMode": "private",
            "CapDrop": ["ALL"], "CapAdd": ["CHOWN", "KILL", "SETGID", "SETUID"],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": false,
            "Memory": 1 << 30, "MemorySwap": 1 << 30, "ShmSize": 256 << 20,
            "NanoCpus": 1_500_000_000u64,
            "PidsLimit": 512,
            "Ulimits": [
                {"Name": "nproc", "Soft": 128, "Hard": 128},
                {"Name": "nofile", "Soft": 1024, "Hard": 1024},
                {"Name": "fsize", "Soft": 16u64 << 30, "Hard": 16u64 << 30},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "LogConfig": {"Type": "none"},
            "Init": false,
            "AutoRemove": false,
            "RestartPolicy": {"Name": "no"},
            "Mounts": [{
                "Target": "/var/lib/x", "Type": "tmpfs",
                "TmpfsOptions": {"SizeBytes": 256 << 20, "Mode": 0o1777},
            }],
        });
        let expected = serde_json::json!({
            "Image": "greenroom/prepared:1",
            "Labels": {"a": "b"},
            "Hostname": "sandbox",
            "Domainname": "",
            "User": "0:0",
            "WorkingDir": "/mnt/data",
            "Entrypoint": ["/.greenroom/agent", "init", "{}"],
            "Env": [],
            "AttachStdin": false, "AttachStdout": false, "AttachStderr": false,
            "OpenStdin": false, "Tty": false,
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": host,
        });
        assert_eq!(serde_json::to_value(body).unwrap(), expected);
    }

    #[test]
    fn the_last_words_of_an_images_program_are_kept_and_bounded() {
        let mut spec = spec();
        spec.agent.begin = Begin::WithApp;
        let log = serde_json::to_value(log_config(&spec)).unwrap();
        let expected =
            serde_json::json!({"Type": "json-file", "Config": {"max-size": "128k", "max-file": "1"}});
        assert_eq!(log, expected);
    }
}
