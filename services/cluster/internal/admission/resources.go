package admission

import (
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strconv"

	"google.golang.org/protobuf/types/known/structpb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// The quality of service classes of a Pod ("Pod Quality of Service Classes" in Kubernetes' documentation).
const (
	BestEffort = "BestEffort"
	Burstable  = "Burstable"
	Guaranteed = "Guaranteed"
)

// qosResources are those that decide about the class; others, such as ephemeral-storage, do not.
var qosResources = [...]string{"cpu", "memory"}

// qosClass is the class of a Pod: Guaranteed where each container has equal requests and limits of CPU and memory,
// BestEffort where none has any, else Burstable. Amounts of zero count as absent, and a limit without a request is the
// request too. Resources of the Pod as a whole, where there are any, decide in the place of the containers'.
func qosClass(spec *objectv1.PodSpec) string {
	var all []*structpb.Struct
	for _, list := range [][]*objectv1.Container{spec.GetInitContainers(), spec.GetContainers()} {
		for _, c := range list {
			all = append(all, c.GetResources())
		}
	}
	if whole := spec.GetResources(); len(amountsOf(whole, "limits"))+len(amountsOf(whole, "requests")) > 0 {
		all = []*structpb.Struct{whole}
	}
	asks, guaranteed := false, len(all) > 0
	for _, r := range all {
		limits, requests := amountsOf(r, "limits"), amountsOf(r, "requests")
		for _, name := range qosResources {
			limit, request := limits[name], requests[name]
			if _, stated := r.GetFields()["requests"].GetStructValue().GetFields()[name]; !stated {
				request = limit
			}
			asks = asks || limit != nil || request != nil
			guaranteed = guaranteed && limit != nil && request != nil && limit.Cmp(request) == 0
		}
	}
	switch {
	case guaranteed:
		return Guaranteed
	case asks:
		return Burstable
	}
	return BestEffort
}

// amountsOf are the amounts above zero of CPU and memory in "limits" or "requests".
func amountsOf(r *structpb.Struct, kind string) map[string]*big.Rat {
	out := map[string]*big.Rat{}
	for _, name := range qosResources {
		if q, ok := quantityOf(r.GetFields()[kind].GetStructValue().GetFields()[name]); ok && q.Sign() > 0 {
			out[name] = q
		}
	}
	return out
}

// resources checks amounts: quantities that are not negative, and requests that are not above limits.
func (v *violations) resources(at string, r *structpb.Struct) {
	limits := v.amounts(at+".limits", r.GetFields()["limits"].GetStructValue())
	requests := v.amounts(at+".requests", r.GetFields()["requests"].GetStructValue())
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		if limit, ok := limits[name]; ok && requests[name].Cmp(limit) > 0 {
			v.add(at+".requests", textOf(r.GetFields()["requests"].GetStructValue().GetFields()[name]),
				"must be less than or equal to %s limit of %s", name, textOf(r.GetFields()["limits"].GetStructValue().GetFields()[name]))
		}
	}
}

func (v *violations) amounts(at string, s *structpb.Struct) map[string]*big.Rat {
	out := map[string]*big.Rat{}
	for _, name := range slices.Sorted(maps.Keys(s.GetFields())) {
		value := s.GetFields()[name]
		q, ok := quantityOf(value)
		switch path := fmt.Sprintf("%s[%s]", at, name); {
		case !ok:
			v.add(path, textOf(value), "must be a quantity such as 100m or 1Gi")
		case q.Sign() < 0:
			v.add(path, textOf(value), "must be greater than or equal to 0")
		default:
			out[name] = q
		}
	}
	return out
}

// textOf is a quantity as it was written.
func textOf(v *structpb.Value) string {
	if n, ok := v.GetKind().(*structpb.Value_NumberValue); ok {
		return strconv.FormatFloat(n.NumberValue, 'g', -1, 64)
	}
	return v.GetStringValue()
}

// quantities are apimachinery's resource.Quantity: a decimal number, and a suffix or an exponent.
var quantities = regexp.MustCompile(`^([+-]?(?:[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32}))(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?[0-9]{1,2}))?$`)

// suffixes are the powers that suffixes stand for.
var suffixes = map[string]struct{ base, exponent int64 }{
	"n": {10, -9}, "u": {10, -6}, "m": {10, -3}, "": {10, 0}, "k": {10, 3}, "M": {10, 6}, "G": {10, 9}, "T": {10, 12}, "P": {10, 15}, "E": {10, 18},
	"Ki": {2, 10}, "Mi": {2, 20}, "Gi": {2, 30}, "Ti": {2, 40}, "Pi": {2, 50}, "Ei": {2, 60},
}

// quantityOf reads a quantity, which JSON may have as a number: then it is what was written, not the nearest binary one.
func quantityOf(v *structpb.Value) (*big.Rat, bool) { return parseQuantity(textOf(v)) }

func parseQuantity(text string) (*big.Rat, bool) {
	parts := quantities.FindStringSubmatch(text)
	if parts == nil {
		return nil, false
	}
	q, ok := new(big.Rat).SetString(parts[1])
	if !ok {
		return nil, false
	}
	power := suffixes[parts[2]]
	if parts[3] != "" {
		exponent, err := strconv.ParseInt(parts[3], 10, 64)
		if err != nil {
			return nil, false
		}
		power.exponent = exponent
	}
	factor := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(power.base), big.NewInt(max(power.exponent, -power.exponent)), nil))
	if power.exponent < 0 {
		return q.Quo(q, factor), true
	}
	return q.Mul(q, factor), true
}
