"""What people say of motion, stillness and absence, in many wordings, and captions that only sound like it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.arrow import to_table
from schemas.caption import Language
from schemas.keys import digest_value
from stages.base import checked
from stages.score.video import VideoScoreUnit, VideoStage

COLUMNS = ("motion_wrong_way", "motion_of_still", "stillness_of_moving", "absence_unsaid", "absence_invented")

MOVES = {
    "en": (
        "The dog makes its way to the gate.", "The dog strolls through the yard.", "The dog gallops across the field.",
        "The dog hurries along.", "The dog dashes off.", "The dog sprints past.", "The dog leaps over the fence.",
        "The dog hops across the lawn.", "The dog marches along the wall.", "The dog chases a ball.",
        "The dog passes the tree.", "The dog passes in front of the house.", "The dog crosses the yard.",
        "The dog approaches the gate.", "The dog enters the room.", "The dog backs away.", "The dog retreats.",
        "The dog changes its position.", "The dog is in motion.", "The car zooms past.",
        "The car zigzags down the road.",
        "The dog meanders through the grass.", "The mouse scurries away.", "The man jogs along the beach.",
        "The cart hurtles down the hill.", "The box is carried across the room.", "The boat cruises along the shore.",
        "The car speeds away.", "The car pulls away.", "The car accelerates.", "The lamp swings back and forth.",
        "The table wobbles.", "The dog traverses the field.", "The beam sweeps across the wall.",
        "The cat edges closer.", "The snail inches forward.", "The ball whizzes by.", "The dog runs to the gate.",
        "The dog moves.", "The dog is walking.", "The circle moves slowly.",
        "The hexagon wanders around the scene.", "A steady change in the position of the ring can be seen.",
        "The ring follows a diagonal trajectory.", "The oval picks up speed.",
        "The pentagon does not stay in one place.", "The rectangle gets displaced by a large amount.",
        "The ring rolls over the ground.", "The crescent hovers about.", "The ellipse skims the surface.",
        "We see the square moving steadily.", "The diamond moves in a circular path.", "The star moves about.",
        "The hexagon shifts from its original position.", "The rectangle finishes in a different spot.",
        "The woman takes a few steps forward.", "The truck rumbles down the road.",
        "The bird flutters from branch to branch.", "The bus pulls out of the stop.",
        "The child skips along the pavement.", "The leaf is blown about by the wind.",
        "The square has moved by the end of the clip.", "The circle starts in one corner and ends in another.",
        "The cross moves at first quickly, later slowly.", "The pentagon is drifting slowly.",
        "The ring shows noticeable movement.", "The ellipse travels some way over the ground.",
        "The cross bounces around inside the frame.", "The ring floats freely through space.",
        "The circle loops around the centre.", "The van reverses out of the driveway.",
        "The plane taxis along the runway.", "The ring comes to life and starts to move.",
        "The ellipse follows a zigzag route.", "The circle traverses the whole width.",
    ),
    "zh": (
        "小狗穿过院子。", "小狗横穿马路。", "小狗越过栅栏。", "小狗经过大门。", "小狗朝右边去了。", "小狗一直在动。",
        "圆形正在运动。", "圆形改变了位置。", "圆形来回摆动。", "圆形平移。", "汽车逐渐靠近。", "小狗在人群中穿行。",
        "六边形在场景里四处游走。", "三角形的位置不断改变。", "星形的轨迹是弧形的。", "正方形有明显的位移。",
        "椭圆形加快了速度。", "心形的速度先快后慢。", "五边形上下浮动。", "长方形从这一端滑到那一端。",
        "圆环滚过地面。", "三角形动了起来。", "三角形换到了别的位置。", "十字形离开了原来的位置。",
        "六边形抖动着前进。", "椭圆形横向移动。", "菱形快速掠过背景。", "小狗跳过栅栏。", "男子正朝门口走去。",
        "汽车疾驰而过。", "鸟儿飞来飞去。", "火车飞驰而过。", "心形的移动十分平稳。", "五边形从角落移动至中央。",
        "圆形弹跳着。", "正方形绕着场景转了一圈并移动。", "长方形被推着走。", "圆形在画面中缓慢移动。",
        "圆环的位置与之前不同。", "月牙形持续移动。", "五边形快速划过场景。", "星形移到了另一个位置。",
        "圆环在两个点之间来回移动。", "心形绕了一圈。", "女子走下楼梯。", "小船漂向远处。", "箭头处于移动状态。",
    ),
}  # fmt: skip
LEFT = {
    "en": (
        "The dog makes for the left side.", "The dog crosses to the left.", "The dog edges to the left.",
        "The dog hops to the left.", "The dog leaps to the left.", "The dog walks from the right to the left.",
        "The dog crosses from right to left.", "The dog is pulled to the left.", "The dog exits at the left.",
        "The dog's position changes to the left.", "Leftward motion of the dog.", "To the left moves the dog.",
        "The dog trots across the lawn to the left.", "The dog runs from the right side towards the left side.",
        "The dog walks past the house towards the left.", "The dog moves down and to the left.",
        "The child rides a bike to the left.", "The truck reverses to the left.", "The skier goes along, veering left.",
        "The white car on the right side of the road drives to the left.",
        "The ring moves over to the left-hand side.", "The square comes nearer to the left border.",
        "The oval's movement is to the left.", "The star shifts a bit to the left.",
        "The cross drifts further and further to the left.", "The heart's position shifts leftward.",
        "The pentagon travels in the direction of the left edge.", "A leftward drift of the crescent can be seen.",
        "The ring starts on the right and ends on the left.", "Slowly, the square heads off towards the left.",
        "The car is driving to the left.", "The woman turns and walks left.", "The truck pulls off to the left.",
        "The oval steadily advances to the left.", "The circle rolls all the way to the left.",
        "The shape is translated leftward.", "The square drifts off to the left side.",
        "The cross travels along the ground towards the left.", "The crescent ends up near the left edge.",
        "The woman steps to the left.", "The square is carried leftwards.", "The cross floats gently left.",
    ),
    "zh": (
        "小狗左移。", "小狗移向左侧。", "小狗移到左边。", "小狗移动到左侧。", "小狗朝左运动。", "小狗向左平移。",
        "小狗向画面左侧移动。", "小狗滑向左边。", "小狗从右边移到左边。", "小狗从右向左移动。",
        "一把红色的椅子向左移动。", "可以看到小狗在树旁边向左移动。", "小狗将向左移动。",
        "圆环向左侧移去。", "圆环往左挪了挪。", "正方形越来越靠左。", "三角形从右侧移向左侧。", "星形由右向左移动。",
        "十字形的位置向左偏移。", "六边形向左前进。", "月牙形沿水平方向向左移动。", "椭圆形朝着左侧边缘移动。",
        "心形的运动方向是向左。", "小狗朝左边跑开。", "汽车朝左侧行驶。", "球向左滚动。",
        "箭头从最右边移动到了最左边。", "圆形朝画面左边移去。", "圆环移动到了画面左端。", "月牙形由右侧移至左侧。",
        "五边形从右端滑到左端。", "汽车向左边开去。",
    ),
}  # fmt: skip
UP = {
    "en": (
        "The kite goes higher.", "The plane gains height.", "The rocket shoots up.", "The plane takes off.",
        "The crate is hoisted.", "The crate is lifted off the ground.", "The balloon moves up.",
        "The ring goes up and up.", "The square moves towards the top edge.", "The triangle gets closer to the top.",
        "The star makes its way upwards.", "The cross floats up to the top.", "The arrow shoots upward.",
        "The crescent is lifted up.", "The bird soars.", "The elevator goes up.",
        "The shape moves from the bottom to the top.", "The ring heads for the top.",
        "The star is displaced upwards.", "The triangle goes upwards.", "The star rises towards the upper edge.",
        "The square floats higher into the frame.", "The pentagon travels upward in a straight line.",
        "The crescent is pulled upwards.",
    ),
    "zh": (
        "气球上移。", "飞机起飞。", "气球越升越高。", "气球向画面上方飘去。",
        "圆环向上移去。", "圆环逐渐上升。", "三角形逐渐靠近顶部。", "星形从下往上移动。", "十字形从底部移动到顶部。",
        "六边形慢慢升起来。", "月牙形升到了高处。", "菱形朝上方漂去。", "气球飘向空中。", "电梯上行。",
        "圆形朝上移动。", "圆环升向高处。", "月牙形离上边缘越来越近。",
    ),
}  # fmt: skip
DOWN = {
    "en": (
        "The ring goes lower and lower.", "The square moves towards the bottom edge.",
        "The triangle gets closer to the bottom.", "The star makes its way downwards.",
        "The cross floats down to the bottom.", "The arrow plummets.", "The crescent is lowered.",
        "The bird dives down.", "The leaf flutters down.", "The shape moves straight down.",
        "The star advances downward.", "The triangle moves in the direction of the bottom edge.",
        "The star comes down.", "The star sinks towards the lower edge.", "The square floats lower in the frame.",
        "The pentagon travels downward in a straight line.", "The crescent is pulled downwards.",
    ),
    "zh": (
        "圆环向下移去。", "圆环逐渐下落。", "三角形逐渐靠近底部。", "星形从上往下移动。", "十字形从顶部移动到底部。",
        "六边形慢慢沉下去。", "月牙形落到了地上。", "菱形朝下方漂去。", "鸟儿俯冲下来。", "电梯下行。",
        "圆形朝下移动。", "圆环沉向低处。", "月牙形离下边缘越来越近。",
    ),
}  # fmt: skip
STILL = {
    "en": (
        "The dog stands quietly.", "The dog sits calmly.", "The dog holds its position.", "The dog keeps its position.",
        "The dog maintains its position.", "The dog is still.", "The dog is static.", "The dog is frozen in place.",
        "The dog doesn't budge.", "The dog doesn’t budge.", "The dog isn't moving.", "The dog does not stir.",
        "The dog has not moved.", "The dog stays absolutely still.", "The dog is totally motionless.",
        "The dog pauses.", "The dog freezes.", "The dog comes to a halt.", "The dog stops.",
        "The ring keeps perfectly still.", "The position of the hexagon remains constant.",
        "The circle remains stationary.", "There is no motion of the oval.", "The cross rests in its place.",
        "The crescent does not shift at all.", "The hexagon is fixed in place.", "The square is completely still.",
        "The ring retains its position.", "The star does not travel.", "No displacement of the ellipse is visible.",
        "The circle hardly moves.", "The hexagon is frozen.", "The cross is locked in position.",
        "The diamond has come to rest.", "The shape occupies the same position in every frame.",
        "The crescent sits motionlessly.", "The car stands idle.", "The man stands in place.",
        "The ball is lying still on the grass.", "The ring maintains a fixed location.",
        "The square appears to be motionless.", "The triangle remains unmoving.", "The hexagon fails to move.",
        "Its coordinates do not change.", "The hexagon is not moving at all.", "The square stays firmly in place.",
        "The heart does not shift position during the clip.", "The arrow holds still for several seconds.",
        "The ring is seen in the same place from beginning to end.", "The circle lacks any movement.",
        "The heart stays in the exact same position.", "The dog lies still on the carpet.", "The oval does not stir.",
        "The rectangle maintains a constant position.",
    ),
    "zh": (
        "小狗待在原地。", "小狗没动。", "小狗不动。", "小狗没有动。", "小狗固定不动。", "小狗的位置不变。",
        "小狗停着。", "小狗停了下来。", "小狗没有任何移动。", "小狗没有位移。",
        "圆环静静地停在那里。", "圆形的位置保持不变。", "正方形一直待在同一位置。", "三角形毫无动静。",
        "星形停在原处。", "十字形没有移动。", "六边形是静止的。", "月牙形保持原位。", "椭圆形位置固定。",
        "菱形位置恒定。", "心形一动也不动。", "五边形定在那里。", "长方形没有任何动作。", "箭头几乎不动。",
        "没有看到圆环移动。", "小狗待着不动。", "女子坐着没动。", "汽车静静停着。", "圆形没有离开原来的位置。",
        "圆形没有改变自己的位置。", "正方形位置毫无变化。", "三角形不再运动。", "三角形纹丝未动。",
        "圆形没有任何位置变化。", "圆环一直停在同一个地方。", "月牙形没有发生移动。", "五边形固定不变。",
        "六边形没有移动的迹象。", "十字形始终处于同一位置。", "椭圆形原封不动。", "小狗趴在地上一动不动。",
        "圆形的坐标没有变化。", "圆环维持原状不动。",
    ),
}  # fmt: skip
AWAY = {
    "en": (
        "The dog is hidden.", "The dog is nowhere to be seen.", "The dog is gone.", "The dog has left.",
        "The dog is out of the image.", "The dog isn't visible.", "The dog is invisible.", "The dog is missing.",
        "The dog is lost from view.", "The dog fades from view.", "The dog is fully occluded.",
        "The dog can no longer be seen.", "No dog is in sight.", "The dog exits.", "The dog leaves the image.",
        "The dog leaves the field of view.",
        "The ring is not visible.", "The square has disappeared.", "There is no trace of the triangle.",
        "The oval goes off the screen.", "The circle slides out of sight.", "The cross passes out of view.",
        "The heart dissolves into nothing.", "The arrow is out of the shot.",
        "The rectangle is not present in the scene.", "The crescent doesn't show up.",
        "The square stays out of sight.", "Nothing can be seen of the hexagon.", "The man steps out of the frame.",
        "The car has gone.", "The woman disappears behind the wall.", "The boat is not to be seen.",
        "The triangle leaves the visible area.", "The star is entirely covered.",
        "The ellipse cannot be made out any more.", "The circle melts away until it is gone.",
        "There is no ring in the frame.", "One cannot see the hexagon any more.", "The star is no longer in view.",
        "The square slips off the edge of the screen.", "The pentagon drops out of view.",
        "The crescent is gone from the scene.", "The dog is nowhere in sight.", "The bird has flown out of view.",
        "There is no longer any trace of the ring.", "The cross dissolves and is gone.",
        "The pentagon is lost from sight.", "The ellipse has moved off-screen.",
    ),
    "zh": (
        "小狗不见了。", "小狗不在了。", "小狗看不到了。", "小狗完全被遮挡。", "小狗隐藏起来。", "小狗离场。",
        "小狗出了画面。", "小狗移到画面外。", "小狗没有出现。",
        "圆环看不见了。", "正方形没有踪影。", "三角形消失不见。", "三角形无法看到。", "星形移出了画面。",
        "十字形跑出了镜头。", "六边形淡出。", "六边形逐渐变得透明直至消失。", "月牙形不再可见。",
        "椭圆形已经没有了。", "画面里已经没有椭圆形了。", "菱形完全被挡住了。", "心形离开视野。", "心形脱离了画面。",
        "五边形从视线中消失。", "小狗跑出了画面。", "男子离开了场景。", "鸟儿飞离了视野。", "长方形暂时不在场景中。",
        "箭头没有在画面中出现。", "箭头的身影已经消失。", "圆形已经消失了。", "圆环完全看不见了。",
        "月牙形跑到画面外面去了。", "五边形没有出现在场景中。", "六边形渐渐消隐。", "十字形隐藏起来了。",
        "椭圆形不见踪迹。", "鸟儿飞走不见了。", "长方形整个不见了。", "三角形已经移到视野之外。",
    ),
}  # fmt: skip
INNOCENT = (
    ("The man continues to speak.", "still", "en"),
    ("She lifts a cup.", "still", "en"),
    ("He pushes a button.", "still", "en"),
    ("A road runs along the house.", "still", "en"),
    ("A pair of running shoes lies there.", "still", "en"),
    ("A rolling pin on a table.", "still", "en"),
    ("An old man with a walking stick.", "still", "en"),
    ("A racing car is parked.", "still", "en"),
    ("一名飞行员坐着。", "still", "zh"),
    ("A man walks from left to right.", "moving right", "en"),
    ("A man runs from the left side towards the right side.", "moving right", "en"),
    ("A man walks with his left arm raised.", "moving right", "en"),
    ("A man walks up to the counter.", "moving down", "en"),
    ("A dog moves left while the camera moves right.", "moving left", "en"),
    ("A car drives past a stop sign.", "moving right", "en"),
    ("A stop sign.", "moving right", "en"),
    ("The dog does not stop running.", "moving right", "en"),
    ("The man stops playing the violin.", "moving right", "en"),
    ("小狗没有停下来。", "moving right", "zh"),
    ("停在路边的车旁，小狗跑过去。", "moving right", "zh"),
    ("A white sink with a tap.", "moving up", "en"),
    ("She watches as the ball disappears.", "still", "en"),
    ("The woman stands still while a dog runs past.", "still", "en"),
    ("The woman stands there and the ball rolls away.", "still", "en"),
    ("镜头向左移动，小狗向右跑。", "moving right", "zh"),
    ("他把球扔向左边。", "moving right", "zh"),
    ("另一只狗向左跑，小狗保持静止。", "still", "zh"),
    ("一名运动员站着。", "still", "zh"),
    ("The car is stationary while other cars drive past.", "still", "en"),
    ("The man runs his fingers through his hair.", "still", "en"),
    ("A man stands up and leaves the room.", "moving right", "en"),
    ("There is no sign of movement.", "still", "en"),
    ("The man does not move his head.", "still", "en"),
    ("The circle is not clearly visible.", "still", "en"),
    ("The circle is partly hidden by the star.", "still", "en"),
    ("A red stripe stretches across the surface.", "still", "en"),
    ("The leaves are green, and a road leads away from the house.", "still", "en"),
    ("The pentagon does not stay in one place.", "moving right", "en"),
    ("The circle, near the left edge, moves to the right.", "moving right", "en"),
    ("The circle in the left part of the scene moves to the right.", "moving right", "en"),
    ("The circle ends up on the right after it starts on the left.", "moving right", "en"),
    ("看不到圆环有任何移动。", "still", "zh"),
    ("圆形离开了原来的位置。", "moving right", "zh"),
    ("靠近左侧边缘的圆形向右移动。", "moving right", "zh"),
    ("没有条纹的圆形向右移动。", "moving right", "zh"),
    ("画面中没有其他物体。", "still", "zh"),
)


def scores(texts: list[str], motion: str | None, language: Language) -> list[dict[str, int | None]]:
    units = [
        VideoScoreUnit(
            caption_key=digest_value(number), region_key=digest_value(number), input_digest=digest_value(number),
            language=language, task="stream", text=text, absent=motion == "absent", motion=motion, visible_share=0.9,
        )
        for number, text in enumerate(texts)
    ]  # fmt: skip
    tables = checked(VideoStage(), to_table(units, VideoScoreUnit))
    rows = {row["caption_key"]: row for table in tables for row in table.to_pylist()}
    return [{name: rows[unit.caption_key][name] for name in COLUMNS} for unit in units]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("wordings", "motion", "column"),
    [
        (MOVES, "still", "motion_of_still"),
        (LEFT, "moving right", "motion_wrong_way"),
        (UP, "moving down", "motion_wrong_way"),
        (DOWN, "moving up", "motion_wrong_way"),
        (STILL, "moving right", "stillness_of_moving"),
        (AWAY, "still", "absence_invented"),
    ],
    ids=["moves", "left", "up", "down", "still", "away"],
)
def test_every_wording_is_understood(
    wordings: dict[Language, tuple[str, ...]], motion: str, column: str, language: Language
) -> None:
    texts = [*wordings[language]]
    assert [text for text, row in zip(texts, scores(texts, motion, language), strict=True) if not row[column]] == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("wordings", "motion"),
    [(LEFT, "moving left"), (UP, "moving up"), (DOWN, "moving down"), (STILL, "still"), (AWAY, "absent")],
    ids=["left", "up", "down", "still", "away"],
)
def test_what_is_true_is_not_held_against_a_caption(
    wordings: dict[Language, tuple[str, ...]], motion: str, language: Language
) -> None:
    texts = [text for text in wordings[language] if not text.startswith(("The dog exits at", "The dog moves down"))]
    wrong = [(text, row) for text, row in zip(texts, scores(texts, motion, language), strict=True) if any(row.values())]
    assert wrong == []


@pytest.mark.parametrize(("text", "motion", "language"), INNOCENT)
def test_what_only_sounds_like_motion(text: str, motion: str, language: Language) -> None:
    (row,) = scores([text], motion, language)
    assert row == dict.fromkeys(COLUMNS, 0)


def test_motion_that_was_not_measured_is_not_stillness() -> None:
    texts = ["The dog runs to the gate.", "The dog is out of view.", "The dog stays still."]
    assert all(value is None for row in scores(texts, None, "en") for value in row.values())


@pytest.mark.parametrize("motion", ["still", "moving right", "moving left", "moving up", "moving down"])
def test_captions_by_people_of_people_are_let_be(shared_data: Path, motion: str) -> None:
    """945 captions, measured as if nobody moved, or everybody one way: what they do not say is not held against them.

    Of the fifth that are held to speak of motion, a reader agrees with nineteen in twenty: "walks across the lawn".
    """
    lines = (shared_data / "pam_eval/input_full.jsonl").read_text().splitlines()
    texts = [told["gt"].strip() for line in lines for told in json.loads(line)["annotations"]]
    assert len(texts) == 945
    rows = scores(texts, motion, "en")
    share = {name: sum(row[name] or 0 for row in rows) / len(rows) for name in COLUMNS}
    print(motion, share)
    assert share["motion_of_still"] < 0.215
    assert share["motion_wrong_way"] < 0.02
    assert share["stillness_of_moving"] < 0.02
    assert share["absence_invented"] < 0.002
