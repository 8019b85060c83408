package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// clusterIPs checks clusterIP, clusterIPs and the families they belong to (Kubernetes:
// ValidateServiceClusterIPsRelatedFields).
func (v *violations) clusterIPs(o *objectv1.Service) {
	spec := o.GetSpec()
	if spec.GetType() == TypeExternalName {
		return
	}
	ips := spec.GetClusterIps()
	switch {
	case spec.GetClusterIp() == "" && len(ips) > 0:
		v.add("spec.clusterIPs[0]", ips[0], "must be empty when `clusterIP` is not specified")
	case spec.GetClusterIp() != "" && (len(ips) == 0 || ips[0] != spec.GetClusterIp()):
		v.add("spec.clusterIPs", strings.Join(ips, ","), "first value must match `clusterIP`")
	}
	if len(ips) > maxClusterIPs {
		v.add("spec.clusterIPs", strings.Join(ips, ","), "may only hold up to %d values", maxClusterIPs)
	}
	if isHeadless(o) {
		return
	}
	var families []Family
	for i, text := range ips {
		if text == headless {
			v.add("spec.clusterIPs", strings.Join(ips, ","), "'None' must be the first and only value")
			return
		}
		a, ok := v.ip(fmt.Sprintf("spec.clusterIPs[%d]", i), text)
		if !ok {
			return
		}
		families = append(families, FamilyOf(a))
	}
	if len(families) == maxClusterIPs && families[0] == families[1] {
		v.add("spec.clusterIPs", strings.Join(ips, ","), "may specify no more than one IP for each IP family")
		return
	}
	for i, f := range families {
		if i < len(spec.GetIpFamilies()) && Family(spec.GetIpFamilies()[i]).valid() && spec.GetIpFamilies()[i] != string(f) {
			v.add(fmt.Sprintf("spec.clusterIPs[%d]", i), ips[i], "expected an %s value as indicated by `ipFamilies[%d]`",
				spec.GetIpFamilies()[i], i)
		}
	}
}

// families checks ipFamilies and ipFamilyPolicy against each other and the cluster.
func (v *violations) families(o *objectv1.Service, have Families) {
	spec := o.GetSpec()
	if spec.GetType() == TypeExternalName {
		return
	}
	list := spec.GetIpFamilies()
	foreign := isHeadless(o) && len(spec.GetSelector()) == 0 // may have families that the cluster has not
	for i, f := range list {
		at := fmt.Sprintf("spec.ipFamilies[%d]", i)
		switch {
		case !Family(f).valid():
			v.add(at, f, "must be one of: IPv4, IPv6")
		case slices.Contains(list[:i], f):
			v.add(at, f, "is a duplicate")
		case !foreign && !have.has(Family(f)):
			v.add(at, f, "not configured on this cluster")
		}
	}
	if len(list) > maxClusterIPs {
		v.add("spec.ipFamilies", strings.Join(list, ","), "may only hold up to %d values", maxClusterIPs)
	}
	policy := spec.GetIpFamilyPolicy()
	v.oneOf("spec.ipFamilyPolicy", policy, singleStack, preferDualStack, requireDualStack)
	switch {
	case policy == singleStack && len(spec.GetClusterIps()) > 1:
		v.add("spec.ipFamilyPolicy", policy, "must be RequireDualStack or PreferDualStack when multiple cluster IPs are specified")
	case policy == singleStack && len(list) > 1:
		v.add("spec.ipFamilyPolicy", policy, "must be RequireDualStack or PreferDualStack when multiple IP families are specified")
	case policy == requireDualStack && len(list) < 2 && !foreign:
		v.add("spec.ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services")
	}
}

// serviceUpdate checks what may not change (Kubernetes: ValidateServiceUpdate).
func (v *violations) serviceUpdate(o, old *objectv1.Service) {
	spec, was := o.GetSpec(), old.GetSpec()
	if typeOf(old) == TypeLoadBalancer && spec.GetType() == TypeLoadBalancer && !equalPtr(spec.LoadBalancerClass, was.LoadBalancerClass) {
		v.add("spec.loadBalancerClass", spec.GetLoadBalancerClass(), "may not change once set")
	}
	if typeOf(old) == TypeExternalName || spec.GetType() == TypeExternalName {
		return
	}
	if isHeadless(o) && isHeadless(old) {
		return
	}
	v.unchanged("clusterIP", "clusterIPs", spec.GetClusterIps(), was.GetClusterIps(), spec)
	v.unchanged("ipFamily", "ipFamilies", spec.GetIpFamilies(), was.GetIpFamilies(), spec)
}

// unchanged checks a list whose second value may come and go, the latter only together with the family policy.
func (v *violations) unchanged(one, many string, now, before []string, spec *objectv1.ServiceSpec) {
	path := "spec." + many
	for i := range min(len(now), len(before)) {
		if now[i] != before[i] {
			v.add(fmt.Sprintf("%s[%d]", path, i), now[i], "may not change once set")
		}
	}
	switch {
	case len(now) == 0 && len(before) > 0:
		v.add(path+"[0]", "", "primary %s can not be unset", one)
	case len(now) < len(before) && spec.GetIpFamilyPolicy() != singleStack:
		v.add("spec.ipFamilyPolicy", spec.GetIpFamilyPolicy(), "must be set to 'SingleStack' when releasing the secondary %s", one)
	}
}

// addrsOf parses addresses and passes over what is none; the result is sorted and has each once.
func addrsOf(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return sortAddrs(out)
}

func sortAddrs(list []netip.Addr) []netip.Addr {
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}
