package verbs

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// NameRule returns what a name breaks, in words, and nothing for a good one.
type NameRule func(name string) string

// maxAnnotations bounds the annotations of one object, in bytes.
const maxAnnotations = 256 << 10

// checkMeta applies Kubernetes' rules for metadata (apimachinery's ValidateObjectMeta, as documented under "Object Names
// and IDs", "Labels and Selectors" and "Annotations").
func (h *Handler[O]) checkMeta(meta *objectv1.ObjectMeta) []errs.Violation {
	var bad []errs.Violation
	add := func(field, value, rule string) {
		if rule != "" {
			bad = append(bad, errs.Violation{Field: "metadata." + field, Value: value, Rule: rule})
		}
	}
	if prefix := meta.GetGenerateName(); prefix != "" {
		// What is appended ends the name, so a dash may end the prefix.
		add("generateName", prefix, h.rules.Name(strings.TrimSuffix(prefix, "-")+"a"))
	}
	switch {
	case meta.GetName() == "":
		add("name", "", "name or generateName is required")
	case len(bad) == 0 || !strings.HasPrefix(meta.GetName(), meta.GetGenerateName()):
		add("name", meta.GetName(), h.rules.Name(meta.GetName()))
	}
	switch {
	case h.rules.Scope == Namespaced:
		add("namespace", meta.GetNamespace(), names.DNSLabel(meta.GetNamespace()))
	case meta.GetNamespace() != "":
		add("namespace", meta.GetNamespace(), "must be empty: a "+h.rules.Noun+" has no namespace")
	}
	checkLabels(meta.GetLabels(), add)
	checkAnnotations(meta.GetAnnotations(), add)
	checkOwners(meta.GetOwnerReferences(), add)
	for i, f := range meta.GetFinalizers() {
		add(fmt.Sprintf("finalizers[%d]", i), f, names.LabelKey(f))
	}
	return bad
}

type adder func(field, value, rule string)

func checkLabels(labels map[string]string, add adder) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		add("labels", key, names.LabelKey(key))
		add("labels["+key+"]", labels[key], names.LabelValue(labels[key]))
	}
}

func checkAnnotations(annotations map[string]string, add adder) {
	total := 0
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		add("annotations", key, names.LabelKey(strings.ToLower(key)))
		total += len(key) + len(annotations[key])
	}
	if total > maxAnnotations {
		add("annotations", "", fmt.Sprintf("must be no more than %d bytes in all, keys and values together; they are %d", maxAnnotations, total))
	}
}

func checkOwners(owners []*objectv1.OwnerReference, add adder) {
	controller := ""
	for i, o := range owners {
		at := fmt.Sprintf("ownerReferences[%d]", i)
		for _, f := range []struct{ name, value string }{
			{"apiVersion", o.GetApiVersion()}, {"kind", o.GetKind()}, {"name", o.GetName()}, {"uid", o.GetUid()},
		} {
			if f.value == "" {
				add(at+"."+f.name, "", "is required")
			}
		}
		if !o.GetController() {
			continue
		}
		if controller != "" {
			add(at+".controller", "true", "only one reference can have controller set to true; "+controller+" has")
		}
		controller = at
	}
}
