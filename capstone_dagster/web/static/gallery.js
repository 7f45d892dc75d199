// Endless scrolling: the next page is fetched when its link comes near, and its cards are moved into this one.
// A page without cards has looked at some thousand events in vain: its link leads on to earlier ones.
const cards = document.querySelector(".cards");
const near = new IntersectionObserver(extend, { rootMargin: "600px" });
const first = document.querySelector(".more");
if (first) near.observe(first);

async function extend(entries) {
  const link = entries[0].target;
  if (!entries[0].isIntersecting) return;
  near.unobserve(link);
  const answer = await fetch(link.href);
  if (!answer.ok) return; // the link remains, and works by a click
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  cards.append(...page.querySelectorAll(".cards > li"));
  const following = page.querySelector(".more");
  if (!following) return cards.children.length ? link.remove() : link.replaceWith(page.querySelector(".none"));
  link.href = following.href;
  near.observe(link);
}
