//! What operators see of a server while it runs: profiles, and how much it tells.

use http::Method;
use krate_apiserver::{Debugging, User};

use crate::support::Api;

/// As a process's own log would.
fn set(text: &str) -> Result<String, String> {
    match text.parse::<i32>() {
        Ok(level) => Ok(format!("set to {level}")),
        Err(_) => Err(format!("{text} is no level")),
    }
}

async fn ask(api: &Api, method: Method, path: &str, body: &str) -> (u16, Vec<u8>) {
    let (head, bytes) = api.raw(method, path.to_owned(), &[], body).await;
    (head.status.as_u16(), bytes.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_had_by_who_may_have_them() {
    let api = Api::start().await;
    let (code, page) = ask(&api, Method::GET, "/debug/pprof/", "").await;
    assert!(code == 200 && String::from_utf8_lossy(&page).contains("profile"), "{code}");
    assert_eq!(ask(&api, Method::GET, "/debug/pprof", "").await.0, 302);
    let (code, profile) = ask(&api, Method::GET, "/debug/pprof/profile?seconds=1", "").await;
    assert_eq!((code, &profile[..2]), (200, &[0x1f, 0x8b][..]), "it is in gzip");
    let (code, why) = ask(&api, Method::GET, "/debug/pprof/heap", "").await;
    assert_eq!((code, &*String::from_utf8_lossy(&why)), (404, "Unknown profile\n"));
    let jane = User::authenticated("jane", &[]);
    let (head, _) = api.raw_as(jane, Method::GET, "/debug/pprof/".to_owned(), &[], "").await;
    assert_eq!(head.status, 403);

    let closed = Api::start_with(|config| config.debugging.profiling = false).await;
    for path in ["/debug/pprof/", "/debug/pprof/profile", "/debug/flags/v"] {
        assert_eq!(ask(&closed, Method::GET, path, "").await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn how_much_is_told_can_be_changed() {
    let debugging = Debugging { set_verbosity: Some(set), ..Debugging::default() };
    let api = Api::start_with(|config| config.debugging = debugging).await;
    let text = |(code, bytes): (u16, Vec<u8>)| (code, String::from_utf8_lossy(&bytes).into_owned());
    let path = "/debug/flags/v";
    assert_eq!(text(ask(&api, Method::PUT, path, "4").await), (200, "set to 4".to_owned()));
    assert_eq!(text(ask(&api, Method::PUT, path, "x").await), (400, "x is no level".to_owned()));
    assert_eq!(text(ask(&api, Method::GET, path, "").await), (406, "unsupported http method".to_owned()));
}
