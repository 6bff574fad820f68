"""Plain text for the pretraining mix: a file of the user's, or a few passages that were written for this project."""

from __future__ import annotations

from pathlib import Path

from alignkit.plugin import DataError, Groups, prompt_id

PASSAGES = """
A river does not choose its bed once and for all. In flood it cuts the outer bank of every bend and leaves gravel on
the inner one, so that over a lifetime the whole valley floor is turned over like a field.

Bread needs little more than flour, water and time. The flour brings wild yeast with it, and a bowl left on the
shelf for a few days will begin to rise on its own.

The clock on the town hall has stopped at ten past four. Nobody remembers in which year, but everyone agrees that it
was in winter, because the oil had frozen.

To sharpen a knife, hold the blade at a low angle and draw it towards you as if you wanted to shave a thin slice off
the stone. Turn it over after every few strokes, and stop when it cuts paper without tearing.

Glass is made of sand, soda and lime. The soda lets the sand melt at a heat that a furnace can reach, and the lime
keeps the glass from dissolving in rain.

My grandmother kept bees behind the barn. She said that they could hear a lie, and went out to tell them the news of
the family before she told anyone else.

A triangle with sides of three, four and five has a right angle. Builders still use this: a rope with twelve equal
knots is all it takes to lay out a square corner.

The first trains frightened cows. Within ten years the cows had stopped looking up, and farmers set their watches by
the morning express.

Snow is a good blanket. Under half a metre of it the ground stays near freezing however cold the night is, and mice
move about in tunnels all winter long.

When two people carry a table through a door, the one who walks backwards decides. It is a small thing, but most
quarrels on moving day begin with it.

Copper roofs are brown when they are new and turn green within a generation. Near the sea it takes half as long,
since salt in the air speeds up the change.

A letter from the coast took three weeks in summer and could take three months in winter. People wrote as if the
answer would reach somebody else, and in a way it did.

Sound travels faster in water than in air, and faster still in iron. A child with an ear on the rail hears the train
long before anyone on the platform does.

The market opens at six. By seven the good peaches are gone, by eight the fishmonger has begun to shout, and by noon
only pigeons and paper are left.

Every map is wrong somewhere. A good one is wrong in places where it does not matter for what you want to do.

Potatoes came from the mountains of South America. For a long time people in Europe grew them for their flowers, and
it took several hungry winters before they ate the rest.

The tide comes twice a day because the sea bulges on two sides of the earth, on the side of the moon and on the side
away from it, and the earth turns under both.

He repaired shoes for forty years in a room no wider than his arms. When the rent went up he moved his bench to the
kitchen, and his customers came up the stairs.
"""


def plain_texts(file: str | None) -> Groups:
    """Rows of plain text (an empty prompt, one response), as `Run.improve(streams=…)` takes them.

    Args:
        file: a text file whose passages are separated by empty lines; None takes those of this module.

    Raises:
        DataError: a file without text.
    """
    text = PASSAGES if file is None else Path(file).read_text(encoding="utf-8")
    passages = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    if not passages:
        raise DataError("there is no text", where=str(file), remedy="give passages separated by empty lines")
    turns = [[{"role": "user", "content": passage}] for passage in passages]  # only to tell the rows apart
    return Groups.from_rows(
        {"prompt": [], "prompt_id": prompt_id(turn), "responses": [passage]}
        for turn, passage in zip(turns, passages, strict=True)
    )
