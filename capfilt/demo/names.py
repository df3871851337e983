"""The reviewed nouns of the embedded corpus: drawings that captions may name, and their names.

445 of the 845 concepts are in this table: those whose names are things that one can count and place beside another.
Not included are scenes ("motorway", "sunset"), masses and plurals ("butter", "grapes"), second drawings of a thing
("cat face"), names that begin with a number, a size or a colour ("black cat") and nouns with equal singular and plural
("deer"). An entry is `id`, with `=english` if CLDR's English name is longer than the thing, and `@中文` if its Chinese
name is (`dog-face=dog@狗`). Entries are grouped by their Chinese measure word.
"""

from __future__ import annotations

_REVIEWED = {
    "只": """alien-monster=space invader@太空侵略者; ant; baby-chick=chick; badger; bat; bear; beaver; beetle; bird;
        boar; boxing-glove; bug=caterpillar; butterfly; cat; chicken@母鸡; chipmunk; cockroach; crab@螃蟹; cricket;
        dodo; dog-face=dog@狗; dove@鸽子; duck; eagle; flamingo; fly; fox; frog; giraffe; goat; goose; gorilla;
        hamster; hedgehog; high-heeled-shoe; hiking-boot=boot@靴子; honeybee=bee; ice-skate@冰鞋; kangaroo; koala;
        lady-beetle=ladybug; leopard; lion; lizard; lobster; mammoth; monkey; mosquito; mouse-face=mouse@老鼠;
        octopus; orangutan; otter; owl; oyster; panda; parrot; peacock; penguin; phoenix-bird=phoenix; polar-bear;
        poodle; rabbit; raccoon; roller-skate@溜冰鞋; rooster; running-shoe=sneaker@运动鞋; sauropod=dinosaur@恐龙;
        scorpion; seal; skunk; sloth; snail; spider; swan; teddy-bear; tiger-face=tiger@老虎; turkey; turtle@乌龟;
        unicorn; watch; wolf""",
    "头": """camel; cow; donkey; elephant; hippopotamus=hippo; llama@羊驼; ox; pig-face=pig@猪; rhinoceros=rhino;
        water-buffalo=buffalo""",
    "匹": "carousel-horse; horse; zebra",
    "条": "crocodile; dolphin; dragon; dress; scarf; shark; snake; spouting-whale=whale@鲸鱼; worm",
    "辆": """ambulance; auto-rickshaw=rickshaw; automobile=car; bicycle; bus; delivery-truck=truck@卡车; fire-engine;
        kick-scooter=scooter; manual-wheelchair=wheelchair@轮椅; minibus; motorcycle; pickup-truck@皮卡车; police-car;
        racing-car; shopping-cart; sled; sport-utility-vehicle=jeep@吉普车; taxi; tractor; tram-car=tram;
        trolleybus""",
    "列": "bullet-train@高速列车; locomotive=steam train",
    "架": "accordion; airplane; balance-scale=scale; flying-saucer; helicopter; ladder; satellite",
    "艘": "canoe; ferry; motor-boat=yacht@游艇; sailboat; ship; speedboat",
    "枚": "coin; military-medal=medal@勋章; pushpin; ring; rocket; safety-pin",
    "把": """axe; banjo; broom; chair; dagger; folding-hand-fan=fan@扇子; guitar; hair-pick=comb@梳子; hammer; key;
        kitchen-knife=knife@刀; paintbrush=brush@刷子; pick=pickaxe; plunger@皮搋子; razor; screwdriver; spoon@勺子;
        straight-ruler=ruler; toothbrush; umbrella; violin; water-pistol; wrench""",
    "支": """candle; cigarette; crayon; firecracker; flashlight; flute; lipstick; microphone;
        party-popper; pen; pencil; saxophone; syringe; test-tube; thermometer; trumpet""",
    "根": """baguette-bread=baguette@法棍; banana; bone; boomerang; carrot; crutch; cucumber; feather; hot-dog;
        hot-pepper=chili@辣椒; lollipop; magic-wand""",
    "棵": "cactus; christmas-tree; deciduous-tree=tree@树; evergreen-tree=pine tree; palm-tree; seedling",
    "朵": "cherry-blossom; cloud; hibiscus; lotus; mushroom; rose; sunflower; tulip",
    "片": "maple-leaf; pizza; shamrock; snowflake; waffle",
    "座": """bank; castle@城堡; church; factory; ferris-wheel; fountain; hindu-temple; hospital; hotel; house; hut;
        japanese-castle=pagoda@宝塔; mantelpiece-clock=mantel clock; mosque; mountain; roller-coaster; school;
        stadium; synagogue; volcano""",
    "顶": """billed-cap=cap@帽子; circus-tent; crown; graduation-cap; military-helmet=helmet@头盔; parachute; tent;
        top-hat@礼帽; womans-hat=sun hat@遮阳帽""",
    "件": "coat; lab-coat; running-shirt=tank top@运动背心; safety-vest=vest@背心; t-shirt; wrapped-gift=gift",
    "台": """camera; desktop-computer=computer@电脑; fax-machine; film-projector; fuel-pump; laptop; microscope;
        movie-camera; printer; radio; satellite-antenna=satellite dish; slot-machine; telescope; television;
        video-camera""",
    "张": "bed; credit-card; framed-picture=painting@油画; joker; receipt; ticket; world-map",
    "封": "envelope; love-letter",
    "本": "blue-book=book@书; calendar; ledger; notebook; spiral-notepad=notepad",
    "块": """cheese-wedge@奶酪; chocolate-bar; cookie; moon-cake; puzzle-piece; rock; shortcake; skateboard; sponge;
        stopwatch""",
    "颗": """avocado; bomb; candy; chestnut; comet; gem-stone=gem; heart-suit=heart@心; olive; peach@桃子; pill; star;
        strawberry; tooth""",
    "杯": """beer-mug; bubble-tea; cocktail-glass@马天尼; glass-of-milk@牛奶; hot-beverage=cup of coffee@咖啡;
        wine-glass""",
    "部": "mobile-phone; telephone",
    "盏": "light-bulb; police-car-light=siren@警灯; red-paper-lantern=lantern@灯笼",
    "口": "bathtub; coffin",
    "面": "drum; mirror; shield",
    "扇": "door; window",
    "瓶": "bottle-with-popping-cork=champagne bottle@香槟",
    "个": """abacus; alarm-clock; alien; american-football; amphora; anchor; artist-palette=palette; baby-bottle;
        backpack; bagel; balloon; baseball; basket; basketball; battery; bell; bell-pepper; bento-box;
        beverage-box=juice box; birthday-cake; brain@大脑; briefcase; bucket; bullseye=target@靶子; burrito;
        chess-pawn@棋子; closed-mailbox-with-raised-flag=mailbox@信箱; coconut; compass; crescent-moon=moon@月亮;
        croissant; crystal-ball; cupcake; curling-stone; diving-mask; doughnut; dumpling; ear-of-corn=corn cob; egg;
        eggplant; electric-plug=plug@插头; empty-nest=nest@鸟巢; fire-extinguisher; floppy-disk; flying-disc=frisbee;
        fortune-cookie; gear; ghost@幽灵; globe-showing-europe-africa=globe@地球; hamburger; handbag;
        honey-pot@蜂蜜罐; hook; hourglass-done=hourglass; jack-o-lantern; jar@罐子; joystick; kite; kiwi-fruit=kiwi;
        knot; label; lemon; locked=padlock@挂锁; lotion-bottle; luggage=suitcase; magnet;
        magnifying-glass-tilted-left=magnifying glass@放大镜; mango; megaphone; melon; mirror-ball; money-bag;
        mouse-trap; nesting-dolls=nesting doll; oil-drum; onion; package=box@箱子; pear; piata=piñata; pie; pineapple;
        playground-slide=slide@滑梯; pool-8-ball=billiard ball; postbox; potato; potted-plant; pretzel; purse;
        red-apple=apple@苹果; rice-ball; ring-buoy=lifebuoy; ringed-planet=planet@行星; robot; roll-of-paper;
        rugby-football; sandwich; skull; snowman-without-snow=snowman; soccer-ball;
        soft-ice-cream=ice cream cone@冰淇淋; spider-web; spiral-shell=seashell; stethoscope; stop-sign; sun; taco;
        takeout-box; tangerine; teapot; tennis=tennis racket@网球拍; thread=spool of thread@线轴; toilet; tomato;
        toolbox; trophy; vertical-traffic-light=traffic light@红绿灯; video-game=game controller; volleyball;
        wastebasket; watermelon; wheel; wind-chime; yarn=ball of yarn@毛线球; yo-yo""",
}

# The default nouns, distinct in shape and in letters. Any first few of them are varied too.
_DEFAULT = """
    dog apple car key elephant banana rocket umbrella butterfly pizza bicycle guitar penguin carrot house balloon frog
    strawberry bus crown owl mushroom sailboat star crab pineapple helicopter camera snail hamburger tractor bell whale
    watermelon castle candle panda cupcake cactus hammer ladybug eggplant sunflower anchor flamingo backpack snowman
    chair
"""
DEFAULT = tuple(_DEFAULT.split())

_IRREGULAR = {
    "goose": "geese", "knife": "knives", "leaf": "leaves", "mouse": "mice", "ox": "oxen",
    "scarf": "scarves", "snowman": "snowmen", "tooth": "teeth", "wolf": "wolves", "cactus": "cacti",
}  # fmt: skip


def reviewed_nouns() -> list[tuple[str, str, str, str]]:
    """Return rows of (concept id, English name, Chinese name, measure word); an empty name means CLDR's."""
    rows = []
    for measure, entries in _REVIEWED.items():
        for entry in entries.split(";"):
            name, _, chinese = entry.strip().partition("@")
            concept, _, english = name.partition("=")
            rows.append((concept, english, chinese, measure))
    return rows


def plural(name: str) -> str:
    """Return the plural of a reviewed noun; in "ball of yarn", the word before "of" gets it."""
    head, separator, rest = name.partition(" of ")
    start, space, last = head.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    elif last in ("potato", "tomato", "mango", "mosquito", "buffalo", "dodo", "volcano"):
        last += "es"
    else:
        last += "s"
    return start + space + last + separator + rest
