"""What a paper's records say today: card, standing record, whether it is stale, and the machines that confirmed it."""

from dataclasses import dataclass

from common.lab.card import Card, Claim
from common.lab.config import Composed
from common.lab.confirmations import Confirmations
from common.lab.errors import LabError
from common.lab.evaluate import quoted
from common.lab.project import Project
from common.lab.record import ClaimRecord, Record
from common.lab.recording import recorded, standing_record, state

NEEDS = {"run": "stale", "judge": "to be judged again"}  # the marks of a record that is outdated


@dataclass(frozen=True)
class Standing:
    """A recorded paper."""

    card: Card
    record: Record
    profiles: tuple[str, ...]  # under which it is recorded
    outdated: dict[str, tuple[str, str]]  # profile -> its mark and why
    machines: int  # on which all claims without a clock came out as recorded

    @property
    def slug(self) -> str:
        return self.card.slug

    @property
    def marks(self) -> list[str]:
        """stale, to be judged again, awaiting: once each."""
        marks = list(dict.fromkeys(mark for mark, _ in self.outdated.values()))
        return marks + (["awaiting"] if self.awaiting else [])

    @property
    def awaiting(self) -> str:
        return self.card.awaiting or self.record.awaiting

    def said(self, text: str) -> str:
        """A text of the card, with the recorded config's values where it quotes fields."""
        known = self.record.provenance
        tree = {**known.config}
        return quoted(
            text, Composed(self.slug, self.record.profile, None, tuple(known.seeds), (), tree)
        ).strip()

    def claims(self) -> list[tuple[Claim | None, ClaimRecord]]:
        """The recorded claims, headlines first, each with its claim of the card where that still has it."""
        known = {claim.id: claim for claim in self.card.claims}
        pairs = [(known.get(claim.id), claim) for claim in self.record.claims]
        return sorted(pairs, key=lambda pair: not pair[1].headline)

    def statement(self, claim: ClaimRecord) -> str:
        """What a claim says: the card's words, which no record is bound to; its id where the card has dropped it."""
        return next((known.statement for known in self.card.claims if known.id == claim.id), claim.id)


def standing(project: Project, slug: str, check: bool = True) -> Standing | None:
    """A paper as it is recorded; None where it is not. LabError where card or record is malformed.

    check: find out whether its records still hold, which takes a second; else they are taken to.
    """
    record = standing_record(project, slug)
    if record is None:
        return None
    outdated = {}
    for profile in recorded(project, slug) if check else ():
        what, why = _state(project, slug, profile)
        if what:
            outdated[profile] = (NEEDS[what], why)
    confirmed = Confirmations.load(project.confirmations(slug), slug)
    return Standing(
        Card.load(project.card(slug)),
        record,
        tuple(recorded(project, slug)),
        outdated,
        max(1, confirmed.machines(record.provenance.observed)),
    )


def _state(project: Project, slug: str, profile: str) -> tuple[str, str]:
    """A config that no longer composes is a changed one."""
    try:
        return state(project, slug, profile)
    except LabError as error:
        return "run", str(error)


def standings(project: Project, check: bool = True) -> list[Standing]:
    """All recorded papers, by slug."""
    return [found for slug in project.slugs if (found := standing(project, slug, check)) is not None]
