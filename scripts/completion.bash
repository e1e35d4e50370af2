# SPDX-License-Identifier: Apache-2.0
# bash completion for lasthop. It needs nothing of the bash-completion package.

# What may follow at a place in the tree of commands.
__lasthop_place() {
	commands= options=
	case $1 in
@PLACES@
	esac
}

# What the value of an option is; fails if it takes none.
__lasthop_value() {
	kind= words=
	case "$1 $2" in
@VALUES@
	*) return 1 ;;
	esac
}

# What a word after a command is.
__lasthop_word() {
	kind=none words=
	case "$1 $2" in
@WORDS@
	esac
}

# Names of interfaces may hold anything but blanks and slashes: they are never evaluated.
__lasthop_interfaces() {
	local name line=0
	while IFS=$' \t:' read -r name _; do
		if ((++line > 2)) && [[ $name == "$1"* ]]; then COMPREPLY+=("$(printf %q "$name")"); fi
	done </proc/self/net/dev
}

__lasthop_reply() {
	case $kind in
	file)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$1")
		;;
	directory)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -d -- "$1")
		;;
	interface) __lasthop_interfaces "$1" ;;
	words) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$1") ;;
	esac
}

_lasthop() {
	local -a line=()
	local index piece joined= path= option= place=0 commands options kind words
	COMPREPLY=()
	# bash takes "--role=tap" for three words, and an address with colons for many.
	for ((index = 1; index <= COMP_CWORD; index++)); do
		piece=${COMP_WORDS[index]}
		if [[ ${#line[@]} -gt 0 && (-n $joined || $piece =~ ^[=:]+$) ]]; then
			line[${#line[@]} - 1]+=$piece
		else
			line+=("$piece")
		fi
		joined=
		if [[ $piece =~ ^[=:]+$ ]]; then joined=1; fi
	done
	local last=$((${#line[@]} - 1))
	local current=${line[last]}
	__lasthop_place ""
	for ((index = 0; index < last; index++)); do
		piece=${line[index]}
		if [[ -n $option ]]; then
			option=
		elif [[ $piece == -* ]]; then
			if [[ $piece != *=* ]] && __lasthop_value "$path" "$piece"; then option=$piece; fi
		elif [[ " $commands " == *" $piece "* ]]; then
			path=${path:+$path }$piece
			__lasthop_place "$path"
		else
			((++place))
		fi
	done
	if [[ -n $option ]]; then
		__lasthop_value "$path" "$option" && __lasthop_reply "$current"
	elif [[ $current == --*=* ]]; then
		__lasthop_value "$path" "${current%%=*}" || return 0
		__lasthop_reply "${current#*=}"
		if [[ $COMP_WORDBREAKS != *=* ]]; then COMPREPLY=("${COMPREPLY[@]/#/${current%%=*}=}"); fi
	elif [[ $current == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$options @GLOBAL@" -- "$current")
	elif [[ -n $commands ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current")
	else
		__lasthop_word "$path" "$place"
		__lasthop_reply "$current"
	fi
}

complete -F _lasthop lasthop
