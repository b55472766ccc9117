// SPDX-License-Identifier: Apache-2.0

// When the page needs the stream. A browser has at most six connections to a server, for
// all its tabs: a page that nobody sees must not keep one.

const hiddenFor = 10_000; // ms

// followPage opens the stream, pauses it once the page has been hidden for a while or is
// left, and resumes it when the page is seen again.
export function followPage(stream) {
  let hide = 0;
  const look = () => {
    clearTimeout(hide);
    if (document.hidden) hide = setTimeout(() => stream.pause(), hiddenFor);
    else stream.resume();
  };
  document.addEventListener('visibilitychange', look);
  addEventListener('pagehide', () => stream.pause()); // the browser may keep the page, for its Back button
  addEventListener('pageshow', look); // also of a page that was opened in the background
  addEventListener('online', look);
  stream.open();
}
