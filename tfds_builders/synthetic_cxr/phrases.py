"""Radiology wording: adjectives, noun phrases and whole sentences, per finding and severity.

Placeholders: {adj} severity adjective, {noun} noun of the finding, {side} "right" | "left" | "bilateral",
{place} place with its side ("right upper lung zone"), {count} number word, {a} indefinite article,
{is} and {s} for agreement of a plural subject. Every sentence of `DESCRIPTIONS` names its side, when the
finding has one, and holds one of the finding's `KEYWORDS`.
"""

from __future__ import annotations

from tfds_builders.synthetic_cxr import labels as L

KEYWORDS: dict[int, tuple[str, ...]] = {
    L.ATELECTASIS: ("atelecta", "collapse", "volume loss"),
    L.CARDIOMEGALY: ("cardiomegaly", "heart", "cardiac silhouette", "cardiac enlargement"),
    L.CONSOLIDATION: ("consolidation", "airspace", "pneumonia", "infiltrate"),
    L.EDEMA: ("edema", "congestion", "interstitial"),
    L.EFFUSION: ("effusion", "pleural fluid", "costophrenic"),
    L.PNEUMOTHORAX: ("pneumothora", "pleural air"),
    L.NODULE: ("nodul", "granuloma", "coin lesion"),
    L.FRACTURE: ("fracture", "osseous", "bony"),
    L.DEVICE: (
        "endotracheal",
        "central venous",
        "enteric",
        "feeding tube",
        "pacemaker",
        "pacing",
        "port-a-cath",
        "chest port",
        "chest tube",
        "pleural drain",
        "sternotomy",
        "sternal wires",
        "support device",
        "lines or tubes",
    ),
    L.EMPHYSEMA: ("emphysema", "hyperinflat", "copd", "hyperexpan"),
    L.HERNIA: ("hernia",),
    L.THICKENING: ("pleural thickening", "pleural scarring", "apical cap", "pleural surfaces"),
    L.SCOLIOSIS: ("scolio", "spinal curvature", "curvature of the thoracic spine"),
    L.ELEVATION: ("hemidiaphragm", "diaphragm"),
}
"""Words, in lower case, one of which occurs in every sentence that states or denies the finding."""

ADJECTIVES: dict[int, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    L.ATELECTASIS: (("mild", "minimal", "minor"), ("moderate",), ("severe", "marked")),
    L.CARDIOMEGALY: (("mild", "slight"), ("moderate",), ("severe", "marked", "massive")),
    L.CONSOLIDATION: (
        ("small", "subtle", "ill-defined"),
        ("moderate", "patchy"),
        ("large", "dense", "extensive"),
    ),
    L.EDEMA: (("mild", "minimal", "early"), ("moderate",), ("severe", "marked", "florid")),
    L.EFFUSION: (("small", "trace", "tiny"), ("moderate", "moderate-sized"), ("large", "massive")),
    L.PNEUMOTHORAX: (("small", "tiny"), ("moderate", "moderate-sized"), ("large", "extensive")),
    L.NODULE: (("small", "subtle"), ("medium-sized", "well-defined"), ("large", "sizeable")),
    L.FRACTURE: (
        ("minimally displaced", "mildly displaced"),
        ("displaced", "moderately displaced"),
        ("markedly displaced", "severely displaced"),
    ),
    L.EMPHYSEMA: (("mild", "early"), ("moderate",), ("severe", "advanced")),
    L.HERNIA: (("small",), ("moderate", "moderate-sized"), ("large",)),
    L.THICKENING: (("mild", "slight"), ("moderate",), ("marked", "extensive")),
    L.SCOLIOSIS: (("mild", "slight"), ("moderate",), ("severe", "marked")),
    L.ELEVATION: (("mild", "slight"), ("moderate",), ("marked", "severe")),
}
"""Adjectives per label and severity 1 to 3."""

NOUNS: dict[int, tuple[str, ...]] = {
    L.ATELECTASIS: ("{place} atelectasis", "atelectasis in the {place}", "{place} volume loss"),
    L.CARDIOMEGALY: (
        "cardiomegaly",
        "cardiac enlargement",
        "enlargement of the cardiac silhouette",
    ),
    L.CONSOLIDATION: (
        "{place} consolidation",
        "airspace opacity in the {place}",
        "{place} airspace disease",
        "consolidation in the {place}",
        "infiltrate in the {place}",
    ),
    L.EDEMA: ("pulmonary edema", "interstitial edema", "pulmonary vascular congestion and edema"),
    L.EFFUSION: ("{side} pleural effusion{s}", "{side} effusion{s}"),
    L.PNEUMOTHORAX: ("{side} pneumothorax", "{side} apicolateral pneumothorax"),
    L.FRACTURE: ("{side} {bone} fracture{s}", "fracture{s} of the {side} {bone}"),
    L.EMPHYSEMA: ("emphysema", "emphysematous change", "bilateral hyperinflation from emphysema"),
    L.HERNIA: ("hiatal hernia", "hiatus hernia", "sliding hiatal hernia"),
    L.THICKENING: ("{place} pleural thickening", "{place} pleural scarring"),
    L.SCOLIOSIS: ("{side} convex thoracic scoliosis", "scoliosis convex to the {side}"),
    L.ELEVATION: ("elevation of the {side} hemidiaphragm", "{side} hemidiaphragm elevation"),
}
"""Noun phrases, to be preceded by an adjective."""

DESCRIPTIONS: dict[int, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    L.ATELECTASIS: (
        ("Linear opacity in the {place} is most in keeping with subsegmental atelectasis",),
        ("Band-like opacities in the {place} represent atelectasis",),
        ("Dense opacity with volume loss of the {place}, consistent with collapse",),
    ),
    L.CARDIOMEGALY: (
        ("The cardiac silhouette is mildly enlarged", "The heart is slightly enlarged"),
        ("The heart is moderately enlarged", "Cardiac silhouette is enlarged"),
        ("The cardiac silhouette is markedly enlarged", "The heart is severely enlarged"),
    ),
    L.CONSOLIDATION: (
        ("Faint airspace opacity is present in the {place}",),
        ("Patchy opacity in the {place}, concerning for pneumonia",),
        (
            "Dense opacification of the {place} with air bronchograms, compatible with pneumonia",
            "Confluent airspace opacity occupies the {place}",
        ),
    ),
    L.EDEMA: (
        ("Mild perihilar haze and vascular congestion",),
        ("Perihilar haziness and septal lines, in keeping with moderate interstitial edema",),
        (
            "Diffuse bilateral perihilar opacities in a batwing pattern, consistent with alveolar edema",
        ),
    ),
    L.EFFUSION: (
        ("Blunting of the {side} costophrenic angle{s}, consistent with a small amount of fluid",),
        ("Meniscus at the {side} lung base{s} from layering pleural fluid",),
        ("Large amount of {side} pleural fluid opacifies much of the hemithorax",),
    ),
    L.PNEUMOTHORAX: (
        ("A thin {side} apical pleural line is visible, compatible with a small pneumothorax",),
        ("Visceral pleural line on the {side} with moderate pleural air",),
        ("Large {side} pneumothorax with collapse of the underlying lung",),
    ),
    L.NODULE: (
        ("Subtle nodular opacit{ies} in the {place}",),
        ("Rounded opacit{ies} in the {place}, suspicious for pulmonary nodule{s}",),
        ("Large rounded nodular lesion{s} in the {place}",),
    ),
    L.FRACTURE: (
        ("Cortical step-off of the {side} {bone}, consistent with fracture{s}",),
        ("Displaced fracture{s} {is} seen involving the {side} {bone}",),
        ("Markedly displaced {side} {bone} fracture{s} with adjacent soft tissue swelling",),
    ),
    L.EMPHYSEMA: (
        ("The lungs are mildly hyperinflated",),
        ("Hyperinflated, hyperlucent lungs with flattened diaphragms, consistent with COPD",),
        ("Marked hyperinflation with upper zone lucency and bullae, compatible with emphysema",),
    ),
    L.HERNIA: (
        ("Small retrocardiac lucency with an air-fluid level, a hiatal hernia",),
        ("Retrocardiac density with an air-fluid level, in keeping with a hiatal hernia",),
        ("Large retrocardiac gas-containing mass, consistent with a hiatal hernia",),
    ),
    L.THICKENING: (
        ("Slight pleural thickening along the {place}",),
        ("Irregular pleural thickening is present at the {place}",),
        ("Marked pleural thickening encases the {place}",),
    ),
    L.SCOLIOSIS: (
        ("There is mild curvature of the thoracic spine, convex to the {side}",),
        ("Moderate {side} convex scoliosis of the thoracic spine",),
        ("Severe spinal curvature convex to the {side}",),
    ),
    L.ELEVATION: (
        ("The {side} hemidiaphragm is slightly elevated",),
        ("The {side} hemidiaphragm is elevated",),
        ("The {side} hemidiaphragm is markedly raised",),
    ),
}
"""Descriptive sentences per label and severity 1 to 3, without the full stop."""

STATEMENTS: tuple[str, ...] = (
    "There is {np}",
    "{np} is present",
    "{np} is seen",
    "{np} is noted",
    "{np}",
    "Findings are consistent with {np}",
    "Demonstrated is {np}",
)
"""Frames around a noun phrase {np}."""

HEDGES: tuple[str, ...] = (
    "Possible {np}",
    "{np} cannot be excluded",
    "Questionable {np}",
    "Findings may represent {np}",
    "{np} is not excluded",
    "Appearances raise the possibility of {np}",
    "Equivocal {np}",
    "Suspected {np}, not definite",
    "{np} is possible",
)
"""Frames that leave the finding uncertain."""

HEDGED_NOUNS: dict[int, tuple[str, ...]] = {
    L.ATELECTASIS: ("basal atelectasis", "subsegmental atelectasis"),
    L.CARDIOMEGALY: ("borderline cardiomegaly", "mild cardiac enlargement"),
    L.CONSOLIDATION: ("early consolidation", "developing pneumonia", "a subtle infiltrate"),
    L.EDEMA: ("mild interstitial edema", "early pulmonary edema"),
    L.EFFUSION: ("a trace pleural effusion", "a small amount of pleural fluid"),
    L.PNEUMOTHORAX: ("a tiny pneumothorax", "a small apical pneumothorax"),
    L.NODULE: ("a pulmonary nodule", "a small nodule, versus nipple shadow"),
    L.FRACTURE: ("a rib fracture", "a nondisplaced rib fracture"),
    L.EMPHYSEMA: ("mild emphysema", "mild hyperinflation"),
    L.HERNIA: ("a small hiatal hernia",),
    L.THICKENING: ("mild pleural thickening",),
    L.ELEVATION: ("mild elevation of a hemidiaphragm",),
}
"""What a hedge speaks about; no side, since the reader is not sure of anything."""

DENIALS: tuple[tuple[tuple[int, ...], tuple[str, ...], float], ...] = (
    (
        (L.EFFUSION, L.PNEUMOTHORAX),
        (
            "No pleural effusion or pneumothorax",
            "There is no pneumothorax or effusion",
            "No evidence of pneumothorax or pleural effusion",
            "Neither pleural effusion nor pneumothorax is identified",
        ),
        0.5,
    ),
    (
        (L.EFFUSION,),
        (
            "No pleural effusion",
            "The costophrenic angles are sharp",
            "The pleural spaces are clear",
        ),
        0.5,
    ),
    (
        (L.PNEUMOTHORAX,),
        (
            "No pneumothorax",
            "There is no evidence of pneumothorax",
            "The lungs are fully expanded, no pneumothorax",
        ),
        0.5,
    ),
    (
        (L.CARDIOMEGALY,),
        (
            "Heart size is normal",
            "The heart is not enlarged",
            "Normal heart size",
            "Cardiac silhouette is within normal limits",
            "Normal cardiomediastinal contours",
        ),
        0.6,
    ),
    (
        (L.CONSOLIDATION, L.EDEMA, L.NODULE, L.ATELECTASIS),
        (
            "The lungs are clear, without consolidation, edema, atelectasis or nodule",
            "Clear lungs: no infiltrate, nodule, atelectasis or edema",
            "The lungs are clear",
        ),
        0.5,
    ),
    (
        (L.CONSOLIDATION,),
        ("No focal consolidation", "No airspace opacity", "There is no focal infiltrate"),
        0.5,
    ),
    (
        (L.EDEMA,),
        (
            "No pulmonary edema",
            "No vascular congestion or edema",
            "The pulmonary vasculature is normal",
        ),
        0.4,
    ),
    (
        (L.NODULE,),
        ("No suspicious nodule", "No pulmonary nodule is identified", "No focal lung lesion"),
        0.35,
    ),
    (
        (L.ATELECTASIS,),
        ("No atelectasis", "No evidence of volume loss or collapse", "The lungs are well expanded"),
        0.35,
    ),
    (
        (L.FRACTURE,),
        (
            "No acute osseous abnormality",
            "No displaced fracture is seen",
            "The bony thorax is intact",
            "Osseous structures are unremarkable",
        ),
        0.45,
    ),
    (
        (L.DEVICE,),
        (
            "There are no support devices",
            "No lines or tubes",
            "No catheter, tube or pacemaker",
            "No hardware projects over the chest",
        ),
        0.35,
    ),
    (
        (L.EMPHYSEMA,),
        ("The lungs are not hyperinflated", "No emphysema", "Lung volumes are normal"),
        0.3,
    ),
    ((L.HERNIA,), ("No hiatal hernia", "The retrocardiac space is clear"), 0.3),
    ((L.THICKENING,), ("No pleural thickening", "The pleural surfaces are smooth"), 0.3),
    (
        (L.SCOLIOSIS,),
        (
            "No scoliosis",
            "No abnormal spinal curvature",
            "The spine is straight",
            "Normal alignment of the thoracic spine",
        ),
        0.3,
    ),
    (
        (L.ELEVATION,),
        (
            "The hemidiaphragms are normal in position",
            "No elevation of either hemidiaphragm",
            "Normal diaphragmatic contours",
        ),
        0.3,
    ),
)
"""(labels denied together, sentences, chance of being mentioned when all of them are absent)."""

CHANGES: dict[str, tuple[str, ...]] = {
    "new": (
        "new since the prior study",
        "new compared with the prior examination",
        "newly developed",
    ),
    "worse": ("increased since the prior study", "worse than before", "progressed in the interval"),
    "improved": (
        "decreased since the prior study",
        "improved in the interval",
        "partially resolved",
    ),
    "unchanged": ("unchanged", "stable since the prior study", "similar to the prior examination"),
}
"""How a change since the prior study is put."""

RESOLVED: tuple[str, ...] = (
    "The previously seen {noun} has resolved",
    "Interval resolution of the {noun}",
    "{noun} is no longer seen",
)

PLAIN_NOUNS: dict[int, str] = {
    L.ATELECTASIS: "atelectasis",
    L.CARDIOMEGALY: "cardiomegaly",
    L.CONSOLIDATION: "consolidation",
    L.EDEMA: "pulmonary edema",
    L.EFFUSION: "pleural effusion",
    L.PNEUMOTHORAX: "pneumothorax",
    L.NODULE: "pulmonary nodule",
    L.FRACTURE: "fracture",
    L.DEVICE: "support device",
    L.EMPHYSEMA: "emphysema",
    L.HERNIA: "hiatal hernia",
    L.THICKENING: "pleural thickening",
    L.SCOLIOSIS: "scoliosis",
    L.ELEVATION: "elevated hemidiaphragm",
}

DEVICES: dict[str, tuple[str, ...]] = {
    "tube": (
        "Endotracheal tube terminates above the carina",
        "An endotracheal tube is in standard position",
        "The tip of the endotracheal tube projects over the mid trachea",
        "Support devices are in place: endotracheal tube",
    ),
    "central line": (
        "A {side} central venous catheter terminates in the SVC",
        "{side} internal jugular central venous line tip overlies the cavoatrial junction",
        "Support devices include a {side} central venous line",
    ),
    "feeding tube": (
        "Enteric tube courses below the diaphragm",
        "A feeding tube passes into the stomach",
        "Nasogastric enteric tube with tip in the stomach",
        "Support devices are in place, including a feeding tube",
    ),
    "pacemaker": (
        "{side} chest wall pacemaker with leads over the right atrium and ventricle",
        "Dual-lead pacemaker generator on the {side}",
        "{side} sided pacing device with intact leads",
        "Support device in place: {side} sided pacemaker",
    ),
    "port": (
        "{side} chest port with catheter tip in the SVC",
        "A {side} port-a-cath is in place",
        "Support device in place: {side} chest port",
    ),
    "chest tube": (
        "{side} chest tube is in place",
        "A {side} pleural drain is directed to the apex",
        "Support devices in place include a {side} chest tube",
    ),
    "sternal wires": (
        "Median sternotomy wires are intact",
        "Status post sternotomy with intact sternal wires",
        "Hardware in place: sternal wires",
    ),
}

DEVICE_NOUNS: dict[str, str] = {
    "tube": "endotracheal tube",
    "central line": "central venous catheter",
    "feeding tube": "feeding tube",
    "pacemaker": "pacemaker",
    "port": "chest port",
    "chest tube": "chest tube",
    "sternal wires": "sternal wires",
}

FILLERS: tuple[str, ...] = (
    "The aorta is tortuous",
    "Mild degenerative changes of the shoulders",
    "Surgical clips in the right upper quadrant",
    "The trachea is midline",
    "Visualized upper abdomen is unremarkable",
    "Overlying soft tissues are unremarkable",
    "Aortic calcifications are noted",
    "Hilar contours are normal",
    "The patient is slightly rotated",
    "Bones are diffusely demineralized",
)
"""Sentences that say nothing about any label."""

INDICATIONS: tuple[str, ...] = (
    "Shortness of breath",
    "Cough",
    "Chest pain",
    "Fever",
    "Preoperative evaluation",
    "Follow-up",
    "Fall",
    "Dyspnea",
    "Rule out pneumonia",
    "Routine examination",
)

NORMAL: tuple[str, ...] = (
    "No acute cardiopulmonary abnormality",
    "No acute cardiopulmonary process",
    "Normal chest radiograph",
    "Unremarkable chest radiograph",
    "No acute disease in the chest",
)
NO_ACUTE: tuple[str, ...] = (
    "No acute cardiopulmonary process",
    "No acute cardiopulmonary abnormality",
    "No acute intrathoracic process",
)

NUMBERS: tuple[str, ...] = ("no", "one", "two", "three", "four", "five", "six")
