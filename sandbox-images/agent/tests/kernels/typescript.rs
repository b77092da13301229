//! TypeScript and JavaScript: Deno's Jupyter kernel, over ZeroMQ.

use greenroom_agent::kernel::{Ending, KernelEvent};
use greenroom_protocol::Language;

use crate::support::{Bench, lives, test_venv, until};

async fn typescript() -> Bench {
    Bench::start(Language::TypeScript, &test_venv(), |_| {}).await
}

#[tokio::test]
async fn state_is_kept_and_results_are_shown() {
    let mut ts = typescript().await;
    assert!(ts.version.contains("Deno"), "{}", ts.version);
    let seen = ts.run("const x: number = 6; x * 7").await.ended(Ending::Ok);
    assert_eq!(
        (seen.result(), &*seen.stdout, &*seen.stderr, &*seen.late),
        ("42", "", "", "")
    );
    for (code, result) in [
        ("x", "6"),
        (
            "interface P { name: string }; const p: P = { name: 'é' }; p",
            "{ name: \"é\" }",
        ),
        (
            "function twice(n: number): number { return 2 * n }; twice(x)",
            "12",
        ),
        (
            "await new Promise((done) => setTimeout(() => done('waited'), 20))",
            "\"waited\"",
        ),
        ("const x = 'again'; x", "\"again\""),
        ("var legacy = [1, , 3]; legacy.length", "3"),
    ] {
        let seen = ts.run(code).await.ended(Ending::Ok);
        assert_eq!(seen.result(), result, "{code}");
    }
    // Statements have no result, and the next one's is not taken for theirs.
    for round in 0..20 {
        let seen = ts.run("let quiet = 1;").await.ended(Ending::Ok);
        assert_eq!(seen.outcome.result, None, "{round}");
        let seen = ts.run(&format!("quiet + {round}")).await;
        assert_eq!(seen.result(), (round + 1).to_string());
    }
}

#[tokio::test]
async fn what_is_printed_arrives_in_order() {
    let mut ts = typescript().await;
    let seen = ts
        .run(
            "console.log('one'); process.stdout.write('two\\n'); console.error('err'); \
              await Deno.stdout.write(new TextEncoder().encode('three\\n')); console.log('four')",
        )
        .await
        .ended(Ending::Ok);
    assert_eq!(
        (&*seen.stdout, &*seen.stderr),
        ("one\ntwo\nthree\nfour\n", "err\n")
    );
    let seen = ts
        .run("for (let i = 0; i < 5000; i++) console.log('line', i)")
        .await;
    let lines: Vec<&str> = seen.stdout.lines().collect();
    assert_eq!((lines.len(), lines.last()), (5000, Some(&"line 4999")));
    // Timers rest between runs: it comes with this run where the machine is slow, else with the next.
    let first = ts.run("setTimeout(() => console.log('later'), 50); 'now'").await;
    assert_eq!(first.result(), "\"now\"");
    let second = ts.run("await new Promise((done) => setTimeout(done, 200))").await;
    assert_eq!(
        format!("{}{}{}", first.stdout, second.late, second.stdout),
        "later\n"
    );
}

#[tokio::test]
async fn errors_say_what_and_where() {
    let mut ts = typescript().await;
    for (code, name, text) in [
        ("throw new TypeError('bad')", "TypeError", "bad"),
        ("no_such_thing", "ReferenceError", "no_such_thing is not defined"),
        ("let a = 5;\na +", "SyntaxError", "2 | a +"),
        ("foo bar", "SyntaxError", "Expected ';'"),
        ("await Promise.reject(new Error('later'))", "Error", "later"),
        ("prompt('who?')", "Error", "there is no terminal"),
        ("confirm('sure?')", "Error", "there is no terminal"),
        ("require('nothing')", "Error", "Cannot find module"),
    ] {
        let seen = ts.run(code).await.ended(Ending::Error);
        let error = seen.error();
        assert_eq!(error.name, name, "{code}");
        assert!(
            format!("{} {}", error.message, error.traceback).contains(text),
            "{code}: {error:?}"
        );
    }
    assert_eq!(
        ts.run("require('node:path').basename('/a/b')").await.result(),
        "\"b\""
    );
}

#[tokio::test]
async fn what_goes_wrong_in_the_background_is_said_and_ends_nothing() {
    let mut ts = typescript().await;
    let first = ts
        .run("setTimeout(() => { throw new Error('in a timer') }, 10); Promise.reject(new Error('unheard')); 1")
        .await
        .ended(Ending::Ok);
    let second = ts
        .run("await new Promise((done) => setTimeout(done, 200)); 2")
        .await;
    assert_eq!(second.result(), "2");
    let said = format!("{}{}{}", first.stderr, second.late, second.stderr);
    assert!(said.contains("in a timer") && said.contains("unheard"), "{said}");
}

#[tokio::test]
async fn displays_are_texts_and_images() {
    const PNG: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let mut ts = typescript().await;
    let seen = ts
        .run("console.log('before'); Deno.jupyter.md`**m**`")
        .await
        .ended(Ending::Ok);
    assert_eq!(seen.displays[0].0["text/markdown"], "**m**");
    let code =
        format!("console.log('before'); await Deno.jupyter.display({{'image/png': '{PNG}'}}, {{raw: true}})");
    let seen = ts.run(&code).await.ended(Ending::Ok);
    let (data, path) = &seen.displays[0];
    assert_eq!(data["image/png"], PNG);
    assert!(ts.path(path.as_deref().unwrap()).is_file());
    let printed = seen
        .events
        .iter()
        .position(|event| matches!(event, KernelEvent::Output { .. }));
    let shown = seen
        .events
        .iter()
        .position(|event| matches!(event, KernelEvent::Display { .. }));
    assert!(printed < shown, "{seen:?}");
}

#[tokio::test]
async fn a_loop_is_interrupted_and_the_state_kept() {
    let mut ts = typescript().await;
    ts.run("const kept = 5").await.ended(Ending::Ok);
    let seen = ts
        .run_and("console.log('looping'); while (true) {}", |event, control| {
            if matches!(event, KernelEvent::Output { .. }) {
                control.interrupt();
            }
        })
        .await
        .ended(Ending::Error);
    assert_eq!(seen.error().name, "interrupted");
    assert_eq!(ts.run("kept").await.ended(Ending::Ok).result(), "5");
}

#[tokio::test]
async fn a_kernel_that_ends_takes_its_descent_along_and_says_how() {
    let mut ts = typescript().await;
    let seen = ts
        .run("await Deno.mkdir('x'); const c = new Deno.Command('sleep', {args: ['1000']}).spawn(); console.log(c.pid); Deno.exit(3)")
        .await
        .ended(Ending::Died);
    assert_eq!(
        (seen.error().name.as_str(), seen.outcome.exit_code),
        ("exit", Some(3))
    );
    let child = seen.stdout.trim().to_owned();
    ts.restart().await;
    until("its child is gone", || !lives(&child)).await;
    assert_eq!(ts.run("typeof c").await.result(), "\"undefined\"");
    let seen = ts.run("Deno.kill(Deno.pid, 'SIGKILL')").await.ended(Ending::Died);
    assert_eq!(
        seen.error().message,
        "the process was killed (signal 9), not by Greenroom"
    );
    ts.restart().await;
    let seen = ts
        .run_and(
            "console.log('waiting'); await new Promise(() => setInterval(() => {}, 1000))",
            |event, control| {
                if matches!(event, KernelEvent::Output { .. }) {
                    control.kill();
                }
            },
        )
        .await
        .ended(Ending::Died);
    assert_eq!(seen.error().name, "killed");
    ts.restart().await;
    assert_eq!(ts.run("1 + 1").await.result(), "2");
}

#[tokio::test]
async fn a_kernel_that_dies_between_runs_is_noticed() {
    let mut ts = typescript().await;
    let pid = ts.run("Deno.pid").await.result().to_owned();
    let killed = std::process::Command::new("kill")
        .args(["-9", &pid])
        .status()
        .unwrap();
    assert!(killed.success());
    let message = ts.died().await.message;
    assert_eq!(message, "the process was killed (signal 9), not by Greenroom");
}
